"""The folder that Lambda runs: the handler with its wheels, without what they do not need at run time, compiled."""

from __future__ import annotations

import compileall
import py_compile
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from export import ExportError

ROOT = Path(__file__).parents[1]
UNUSED = (
    "bin",
    "numpy/**/tests",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/f2py",
    "numpy/random/lib",
    "onnxruntime/capi/libonnxruntime.so*",
    "onnxruntime/datasets",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "**/*.pyi",
)
"""What no import of the handler reaches. The library libonnxruntime.so is for C programs: Python has its own copy."""
EMPTIED = ("numpy/_core/_add_newdocs.py", "numpy/_core/_add_newdocs_scalars.py")
"""Modules that do nothing but give numpy's types and functions their docstrings, for 5 ms of every cold start."""


def package(target: Path) -> None:
    """Build the package for this Python and this machine; `target` must not exist.

    Raises ExportError if a wheel cannot be had.
    """
    with (ROOT / "pyproject.toml").open("rb") as file:
        wheels = tomllib.load(file)["project"]["dependencies"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--target", str(target), "--no-deps", "--no-compile", "--only-binary", ":all:", *wheels]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if ran.returncode != 0:
        raise ExportError(f"pip cannot install {', '.join(wheels)}: {ran.stderr.strip().splitlines()[-1]}")
    for pattern in UNUSED:
        for path in list(target.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in EMPTIED:
        (target / name).write_text("")
    shutil.copytree(ROOT / "handler", target / "handler", ignore=shutil.ignore_patterns("__pycache__"))
    # Unchecked: what unzips the package gives the sources other times, and a time that differs costs a compilation.
    compileall.compile_dir(target, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
