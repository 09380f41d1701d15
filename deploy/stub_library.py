"""A stub of a shared library: it has the functions' names, and a call of one prints a message and ends the process.

numpy's wheels bring OpenBLAS, 28 MB that onnxruntime and the handler never call. But numpy's own modules are linked to
it, so a library of that name with those functions must be there.

Format: "System V Application Binary Interface", chapters 4 and 5 (ELF-64), as glibc's dynamic linker reads it: a text
segment with symbols and code, and a data segment with the dynamic section, which the linker writes to.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

_MESSAGE = b"a function of a library was called that this package leaves out (deploy/stub_library.py)\n"
_EXIT_STATUS = 70
_PAGE = 0x10000
"""Largest page of the processors that are supported."""

_HEADER, _PROGRAM, _SYMBOL, _DYNAMIC = "<16sHHIQQQIHHHHHH", "<IIQQQQQQ", "<IBBHQQ", "<QQ"
_EM_X86_64, _EM_AARCH64 = 62, 183
_SHT_DYNSYM = 11


def undefined_symbols(library: Path) -> list[str]:
    """The symbols that an ELF-64 library imports from others."""
    content = library.read_bytes()
    sections_at, size, count = _unpack("<Q", content, 40)[0], *_unpack("<HH", content, 58)
    sections = [_unpack("<IIQQQQIIQQ", content, sections_at + size * index) for index in range(count)]
    table = next(section for section in sections if section[1] == _SHT_DYNSYM)
    strings_at = sections[table[6]][4]
    names = []
    for offset in range(table[4], table[4] + table[5], struct.calcsize(_SYMBOL)):
        name, _, _, section, _, _ = _unpack(_SYMBOL, content, offset)
        if section == 0 and name:
            start = strings_at + name
            names.append(content[start : content.index(b"\0", start)].decode())
    return names


def machine(library: Path) -> int:
    """The processor of an ELF library, as its header names it."""
    return int(_unpack("<H", library.read_bytes()[:20], 18)[0])


def stub_library(name: str, symbols: Sequence[str], processor: int) -> bytes:
    """A library of that name with these functions, each of which prints a message and ends the process.

    Raises ValueError for a processor that is neither x86-64 nor AArch64.
    """
    strings, offsets = b"\0", []
    for text in (*symbols, name):
        offsets.append(len(strings))
        strings += text.encode() + b"\0"
    table = _hash_table(symbols)
    symbols_at = struct.calcsize(_HEADER) + 3 * struct.calcsize(_PROGRAM)
    symbols_size = (len(symbols) + 1) * struct.calcsize(_SYMBOL)
    table_at = symbols_at + symbols_size
    strings_at = table_at + len(table)
    code_at = -(-(strings_at + len(strings)) // 16) * 16
    code = _code(processor)
    dynamic_at = -(-(code_at + len(code)) // 16) * 16

    entries = bytes(struct.calcsize(_SYMBOL))
    for offset in offsets[:-1]:
        entries += struct.pack(_SYMBOL, offset, 0x12, 0, 1, code_at, len(code))  # a global function
    dynamic = b"".join(
        struct.pack(_DYNAMIC, tag, value)
        for tag, value in (
            (14, offsets[-1]),  # DT_SONAME
            (4, table_at),  # DT_HASH
            (5, strings_at),  # DT_STRTAB
            (6, symbols_at),  # DT_SYMTAB
            (10, len(strings)),  # DT_STRSZ
            (11, struct.calcsize(_SYMBOL)),  # DT_SYMENT
            (0, 0),
        )
    )
    header = struct.pack(
        _HEADER, b"\x7fELF\x02\x01\x01", 3, processor, 1, 0, struct.calcsize(_HEADER), 0, 0, 64, 56, 3, 64, 0, 0
    )
    data_at = _PAGE + dynamic_at
    text_end = code_at + len(code)
    programs = b"".join(
        struct.pack(_PROGRAM, *values)
        for values in (
            (1, 5, 0, 0, 0, text_end, text_end, _PAGE),  # PT_LOAD, read and execute
            (1, 6, dynamic_at, data_at, data_at, len(dynamic), len(dynamic), _PAGE),  # PT_LOAD, read and write
            (2, 6, dynamic_at, data_at, data_at, len(dynamic), len(dynamic), 8),  # PT_DYNAMIC
        )
    )
    content = header + programs + entries + table + strings
    content = content.ljust(code_at, b"\0") + code
    return content.ljust(dynamic_at, b"\0") + dynamic


def _hash_table(symbols: Sequence[str]) -> bytes:
    """A hash table of one bucket with all symbols: each is looked up only once."""
    count = len(symbols)
    words = [1, count + 1, min(count, 1), 0, *range(2, count + 1), 0][: 4 + count]
    return struct.pack(f"<{len(words)}I", *words).ljust(-(-len(words) // 2) * 8, b"\0")


def _code(processor: int) -> bytes:
    """write(2, message) and exit_group(status), by Linux's system calls."""
    if processor == _EM_X86_64:
        code = struct.pack("<BIBI", 0xB8, 1, 0xBF, 2)  # mov eax, SYS_write; mov edi, 2
        code += b"\x48\x8d\x35" + struct.pack("<I", 19)  # lea rsi, [rip + 19]: the message behind the code
        code += struct.pack("<BI", 0xBA, len(_MESSAGE)) + b"\x0f\x05"  # mov edx, length; syscall
        code += struct.pack("<BIBI", 0xB8, 231, 0xBF, _EXIT_STATUS) + b"\x0f\x05"  # SYS_exit_group; syscall
        return code + _MESSAGE
    if processor == _EM_AARCH64:
        words = (
            0xD2800000 | 2 << 5,  # mov x0, 2
            0x10000001 | 7 << 5,  # adr x1, 7 instructions on: the message behind the code
            0xD2800002 | len(_MESSAGE) << 5,  # mov x2, length
            0xD2800008 | 64 << 5,  # mov x8, SYS_write
            0xD4000001,  # svc 0
            0xD2800000 | _EXIT_STATUS << 5,  # mov x0, status
            0xD2800008 | 94 << 5,  # mov x8, SYS_exit_group
            0xD4000001,  # svc 0
        )
        return struct.pack(f"<{len(words)}I", *words) + _MESSAGE
    raise ValueError(f"processor {processor} is neither x86-64 ({_EM_X86_64}) nor AArch64 ({_EM_AARCH64})")


def _unpack(form: str, content: bytes, offset: int) -> tuple[int, ...]:
    return struct.unpack_from(form, content, offset)
