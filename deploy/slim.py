"""Removes from wheels what the function never uses. A cold start pays for every module that an import brings along."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from deploy import DeployError
from deploy.stub_library import machine, stub_library, undefined_symbols

UNUSED = (
    "bin",
    "**/*.pyi",
    "**/py.typed",
    "**/*.dist-info/RECORD",
    "**/*.dist-info/REQUESTED",
    "**/*.dist-info/sboms",
    "numpy/**/tests",
    "numpy/_array_api_info.py",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/_core/_simd.*",
    "numpy/_core/*_tests.*",
    "numpy/_pyinstaller",
    "numpy/_typing",
    "numpy/char",
    "numpy/conftest.py",
    "numpy/core",
    "numpy/ctypeslib",
    "numpy/distutils",
    "numpy/f2py",
    "numpy/fft",
    "numpy/lib/[!_]*",
    "numpy/lib/_[!_v]*",
    "numpy/linalg",
    "numpy/ma",
    "numpy/matlib.py",
    "numpy/matrixlib",
    "numpy/polynomial",
    "numpy/random",
    "numpy/rec",
    "numpy/strings",
    "numpy/testing",
    "numpy/typing",
    "onnxruntime/capi/libonnxruntime.so*",
    "onnxruntime/datasets",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
)
"""Files that no import of the handler reads. libonnxruntime.so is for C programs: Python has a copy of its own."""

REPLACED = {
    "numpy/__init__.py": '''"""numpy as far as the function uses it: arrays, their types and ufuncs."""
from . import version
from ._globals import _CopyMode, _NoValue
from .version import __version__
from . import _core
from ._core import *
''',
    "numpy/lib/__init__.py": '''"""What onnxruntime asks for to find numpy's C API."""
from ._version import NumpyVersion
''',
    # Nothing but docstrings for types and functions.
    "numpy/_core/_add_newdocs.py": "",
    "numpy/_core/_add_newdocs_scalars.py": "",
}
"""Modules that are replaced. Numpy's own __init__ imports all its parts, and multiplies by BLAS as a test."""


class Change(NamedTuple):
    """Text in a module's source, which must be there once, and its replacement."""

    module: str
    old: str
    new: str


CHANGES = (
    # `inspect` is used for the docstrings and signatures of numpy's functions, which only people read.
    Change("numpy/_core/overrides.py", "import inspect\n", ""),
    Change("numpy/_core/overrides.py", "        if verify:\n", "        if False:\n"),
    Change("numpy/_core/overrides.py", "        if docs_from_dispatcher and", "        if False and"),
    Change("numpy/_core/overrides.py", "        if not verify and not getattr(", "        if False and not getattr("),
    Change("numpy/_core/function_base.py", "import inspect\n", ""),
    Change("numpy/_core/function_base.py", "    doc = inspect.cleandoc(doc)\n", "    return\n"),
    # Imported only where they are used, which the function never does.
    Change("numpy/_core/_internal.py", "import ast\n", ""),
    Change("numpy/_core/_internal.py", "ast.literal_eval(", '__import__("ast").literal_eval('),
    Change("numpy/_core/_methods.py", "import pickle\n", ""),
    Change("numpy/_core/_methods.py", "        pickle.dump(", '        __import__("pickle").dump('),
    Change("numpy/_core/_methods.py", "    return pickle.dumps(", '    return __import__("pickle").dumps('),
    # Numpy can do without ctypes.
    Change("numpy/_core/_internal.py", "    import ctypes\n", "    raise ImportError\n"),
    # From dataclasses orjson takes one type, to recognise fields; a stub is enough, as no dataclasses are written here.
    Change(
        "orjson/__init__.py",
        "from .orjson import *\n",
        "import sys, types\n"
        'sys.modules.setdefault("dataclasses", stub := types.ModuleType("dataclasses"))\n'
        "stub._FIELD = None\n"
        "from .orjson import *\n"
        'if sys.modules["dataclasses"] is stub:\n'
        '    del sys.modules["dataclasses"]\n',
    ),
)

BLAS = "libscipy_openblas"


def slim(target: Path) -> None:
    """Remove from wheels that are unpacked into `target` what the function does not need.

    Raises DeployError if a module differs from the version that this was written for.
    """
    for pattern in UNUSED:
        for path in list(target.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, source in REPLACED.items():
        if not (target / name).exists():
            raise DeployError(f"{name}, which deploy/slim.py replaces, does not exist any more: adapt deploy/slim.py")
        (target / name).write_text(source, "utf-8")
    for change in CHANGES:
        path = target / change.module
        source = path.read_text("utf-8") if path.exists() else ""
        if source.count(change.old) != 1:
            raise DeployError(
                f"{change.module} must have {change.old!r} once, which deploy/slim.py changes: adapt deploy/slim.py"
            )
        path.write_text(source.replace(change.old, change.new), "utf-8")
    _leave_out_blas(target)


def _leave_out_blas(target: Path) -> None:
    """Replace OpenBLAS by an empty library, and remove the libraries that only OpenBLAS needs."""
    (openblas,) = (target / "numpy.libs").glob(f"{BLAS}*.so*")
    users = [path for path in target.glob("numpy/**/*.so") if openblas.name.encode() in path.read_bytes()]
    symbols = sorted({name for user in users for name in undefined_symbols(user) if name.startswith("scipy_")})
    stub = stub_library(openblas.name, symbols, machine(openblas))
    shutil.rmtree(target / "numpy.libs")
    openblas.parent.mkdir()
    openblas.write_bytes(stub)
