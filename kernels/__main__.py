"""Compile the operators: `python -m kernels`, for Lambda's two processors and for this machine.

The compiler is Zig's clang, which comes as a wheel and compiles for any system on any other.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kernels import library

FOLDER = Path(__file__).parent
SOURCES = {
    "x86_64": ("operators.c", "avx2.c", "avx512.c", "vnni.c"),
    "aarch64": ("operators.c", "neon.c"),
    "arm64": ("operators.c", "neon.c"),
}
"""Processor -> its source files."""
TARGETS = {
    ("linux", "x86_64"): "x86_64-linux-gnu.2.28",  # the C library that onnxruntime's wheels require
    ("linux", "aarch64"): "aarch64-linux-gnu.2.28",
    ("darwin", "x86_64"): "x86_64-macos",
    ("darwin", "arm64"): "aarch64-macos",
}
"""System and processor, as Python names them -> Zig's name for both."""
DEPLOYED = (("linux", "x86_64"), ("linux", "aarch64"))
# A product and a sum are fused only where the source says so, or CPUs would give different bits.
FLAGS = ("-std=c17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-fPIC", "-shared")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")


class CompileError(Exception):
    """The operators could not be compiled; the message says why."""


def compile_operators(system: str, machine: str, target: Path | None = None, *, symbols: bool = False) -> Path:
    """Compile the library for a system and a processor, whole or not at all, and return its path.

    `target` is the file to write, by default where operators are looked for; `symbols` keeps functions' names in it.
    Raises CompileError.
    """
    if (system, machine) not in TARGETS:
        known = ", ".join(" ".join(each) for each in TARGETS)
        raise CompileError(f"there are no operators for {system} {machine}, only for {known}")
    target = target or Path(library(system, machine))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as folder:
        made = Path(folder, target.name)
        command = [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[system, machine], *FLAGS, *WARNINGS]
        command += [] if symbols else ["-s"]
        caches = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
        ran = subprocess.run(  # noqa: S603
            [*command, "-o", str(made), *SOURCES[machine]],
            cwd=FOLDER,
            env={**os.environ, **caches},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            reason = ran.stderr.strip()
            if "No module named ziglang" in reason:
                reason = "the compiler is missing, install it with: pip install '.[export]'"
            raise CompileError(f"cannot compile the operators for {system} {machine}: {reason[-2000:]}")
        made.replace(target)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels", description="Compile the operators of the INT8 model.")
    parser.parse_args()
    try:
        for system, machine in dict.fromkeys([*DEPLOYED, (sys.platform, os.uname().machine)]):
            print(compile_operators(system, machine))
    except CompileError as error:
        print(f"kernels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
