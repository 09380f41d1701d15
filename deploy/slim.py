"""Wheels without what the function never uses. A cold start pays for every module that an import brings along."""

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
"""What no import of the handler reaches. The library libonnxruntime.so is for C programs: Python has its own copy."""

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
"""Modules that are written anew. Numpy's own first one imports all its parts, and multiplies by BLAS as a test."""


class Change(NamedTuple):
    """A place in a module's source, which must be there once, and what takes it."""

    module: str
    old: str
    new: str


CHANGES = (
    # What `inspect` finds out there of each of numpy's functions is for people who read it.
    Change("numpy/_core/overrides.py", "import inspect\n", ""),
    Change("numpy/_core/overrides.py", "        if verify:\n", "        if False:\n"),
    Change("numpy/_core/overrides.py", "        if docs_from_dispatcher and", "        if False and"),
    Change("numpy/_core/overrides.py", "        if not verify and not getattr(", "        if False and not getattr("),
    Change("numpy/_core/function_base.py", "import inspect\n", ""),
    Change("numpy/_core/function_base.py", "    doc = inspect.cleandoc(doc)\n", "    return\n"),
    # Imported where they are used, which is not here.
    Change("numpy/_core/_internal.py", "import ast\n", ""),
    Change("numpy/_core/_internal.py", "ast.literal_eval(", '__import__("ast").literal_eval('),
    Change("numpy/_core/_methods.py", "import pickle\n", ""),
    Change("numpy/_core/_methods.py", "        pickle.dump(", '        __import__("pickle").dump('),
    Change("numpy/_core/_methods.py", "    return pickle.dumps(", '    return __import__("pickle").dumps('),
    # Numpy does without it.
    Change("numpy/_core/_internal.py", "    import ctypes\n", "    raise ImportError\n"),
    # Of dataclasses orjson wants a single type, by which it knows their fields; it is given none here.
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
    """Take from wheels that are unpacked into `target` what the function does not need.

    Raises DeployError if a module is not what it was in the version that this was written for.
    """
    for pattern in UNUSED:
        for path in list(target.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, source in REPLACED.items():
        if not (target / name).exists():
            raise DeployError(f"there is no {name} any more, which deploy/slim.py replaces: adapt it")
        (target / name).write_text(source, "utf-8")
    for change in CHANGES:
        path = target / change.module
        source = path.read_text("utf-8") if path.exists() else ""
        if source.count(change.old) != 1:
            raise DeployError(f"{change.module} has not once {change.old!r}, which deploy/slim.py changes: adapt it")
        path.write_text(source.replace(change.old, change.new), "utf-8")
    _leave_out_blas(target)


def _leave_out_blas(target: Path) -> None:
    """Put an empty library into the place of OpenBLAS, and remove what only that needs."""
    (openblas,) = (target / "numpy.libs").glob(f"{BLAS}*.so*")
    users = [path for path in target.glob("numpy/**/*.so") if openblas.name.encode() in path.read_bytes()]
    symbols = sorted({name for user in users for name in undefined_symbols(user) if name.startswith("scipy_")})
    stub = stub_library(openblas.name, symbols, machine(openblas))
    shutil.rmtree(target / "numpy.libs")
    openblas.parent.mkdir()
    openblas.write_bytes(stub)
