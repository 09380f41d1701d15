"""What `sam build` gives to Lambda: `python -m deploy.package function|loader|model FOLDER`.

function  the handler and its wheels, compiled, without the parts of wheels that it does not use
loader    the function that copies models from S3 to EFS
model     the INT8 model as a layer, for stacks without EFS

Works on any machine for each of Lambda's processors, since wheels are unpacked, not run. The same sources give the
same bytes.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from deploy import DeployError
from deploy.slim import slim
from kernels import library

ROOT = Path(__file__).parents[1]
MODEL_FOLDER = ROOT / "build" / "ml-models" / "all-MiniLM-L6-v2"
ARCHITECTURES = {"x86_64": "x86_64", "arm64": "aarch64"}
"""Lambda's name of a processor -> its name in wheels."""
LAMBDA_PYTHON = "3.13"
PYTHONS = ("3.13", "3.14")
"""What template.yaml's Runtime allows, of Lambda's with Amazon Linux 2023."""
OWN_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
GLIBC = ("_2_34", "_2_31", "_2_28", "_2_27", "_2_17", "2014")
"""C libraries, Amazon Linux 2023's (2.34) and older ones: pip matches a platform exactly, without "or older"."""


def package(target: Path, python: str | None = None, architecture: str | None = None) -> None:
    """Build the function's package into `target`, which must not exist or be empty.

    `python` is a version such as 3.13, `architecture` x86_64 or arm64; by default those of this process.
    Raises DeployError if a wheel cannot be installed, if the operators are not compiled for the architecture, or if
    there is no Python of that version to compile with.
    """
    compiler = interpreter(python or OWN_PYTHON)
    operators = _operators(architecture)
    _install_wheels(target, python or OWN_PYTHON, architecture)
    slim(target)
    _copy_sources(target, "handler")
    _copy_files(target, "artifact", "__init__.py", "manifest.py")
    _copy_files(target, "kernels", "__init__.py", operators.name)
    _compile(target, compiler)


def package_loader(target: Path, python: str | None = None, architecture: str | None = None) -> None:
    """Like `package`, for the loader, which needs only orjson beside Lambda's own boto3."""
    compiler = interpreter(python or OWN_PYTHON)
    _install_wheels(target, python or OWN_PYTHON, architecture, only="orjson")
    _copy_sources(target, "loader")
    _copy_sources(target, "artifact")
    _compile(target, compiler)


def package_model(target: Path, model_folder: Path) -> None:
    """Put the INT8 part of a model folder's version in use into `target/ml-models`.

    Raises DeployError if it cannot be read or is damaged.
    """
    from artifact.manifest import CURRENT, MANIFEST, ArtifactError, open_artifact
    from export.manifest import reduced  # here, since the other packages need nothing but Python

    try:
        artifact = open_artifact(model_folder)
        artifact.check_digests()
        manifest = reduced(artifact.manifest, ["int8"])
    except ArtifactError as error:
        raise DeployError(str(error)) from error
    folder = target / "ml-models" / model_folder.name / manifest.version
    folder.mkdir(parents=True)
    for name in manifest.files:
        shutil.copyfile(Path(artifact.folder, name), folder / name)
    (folder / MANIFEST).write_bytes(manifest.to_json())
    (folder.parent / CURRENT).write_text(manifest.version + "\n", "utf-8")


def _copy_sources(target: Path, name: str) -> None:
    shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


def _copy_files(target: Path, folder: str, *names: str) -> None:
    (target / folder).mkdir()
    for name in names:
        shutil.copy(ROOT / folder / name, target / folder)


def _operators(architecture: str | None) -> Path:
    path = Path(library("linux", _processor(architecture)))
    if not path.is_file():
        raise DeployError(f"{path} is missing: compile it with: make operators")
    return path


def _processor(architecture: str | None) -> str:
    return ARCHITECTURES[architecture] if architecture else platform.machine()


def _compile(target: Path, interpreter: str) -> None:
    # unchecked-hash: unzipping changes the sources' times, and Python would compile them again for that.
    # -o 2: without docstrings and assertions, which every start would read for nothing.
    # cwd: so that no path of this machine is in the bytecode.
    command = [interpreter, "-m", "compileall", "-q", "-o", "2", "--invalidation-mode", "unchecked-hash", "."]
    ran = subprocess.run(  # noqa: S603
        command, cwd=target, capture_output=True, text=True, check=False, env=_reproducible()
    )
    if ran.returncode != 0:
        raise DeployError(f"{interpreter} cannot compile the package: {(ran.stdout + ran.stderr).strip()[-500:]}")
    for path in list(target.rglob("*.opt-2.pyc")):  # under the names that Python looks for without -OO
        path.rename(path.with_name(path.name.replace(".opt-2.pyc", ".pyc")))


def _install_wheels(target: Path, python: str, architecture: str | None, only: str = "") -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        wheels = [wheel for wheel in tomllib.load(file)["project"]["dependencies"] if wheel.startswith(only)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--target", str(target), "--no-deps", "--no-compile", "--only-binary", ":all:"]
    command += ["--implementation", "cp", "--python-version", python]
    processor = _processor(architecture)
    command += [f"--platform=manylinux{glibc}_{processor}" for glibc in GLIBC]
    ran = subprocess.run([*command, *wheels], capture_output=True, text=True, check=False)  # noqa: S603
    if ran.returncode != 0:
        raise DeployError(
            f"pip cannot install {', '.join(wheels)} for Python {python} on {processor}: "
            f"{ran.stderr.strip().splitlines()[-1]}"
        )


def interpreter(python: str) -> str:
    """A Python of that version, for its bytecode. Raises DeployError if there is none."""
    if python == OWN_PYTHON:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [shutil.which(f"python{python}"), *(map(str, sorted(pyenv.glob(f"{python}.*/bin/python{python}"))))]
    for path in filter(None, found):
        probe = subprocess.run([path, "-c", ""], capture_output=True, check=False)  # noqa: S603
        if probe.returncode == 0:
            return path
    raise DeployError(
        f"there is no python{python} to compile the package, so that cold starts need not: install it "
        f"(uv python install {python}, pyenv install {python}, or your system's packages) and put it on PATH"
    )


def _reproducible() -> dict[str, str]:
    """The environment, with variables that give sets in bytecode the same order in each build."""
    return {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": ""}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.package", description="Build what Lambda runs.")
    parser.add_argument("what", choices=["function", "loader", "model"])
    parser.add_argument("target", type=Path, help="folder to write to, empty or not there yet")
    parser.add_argument("--python", default=LAMBDA_PYTHON, help="Lambda's version; default: %(default)s")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="x86_64", help="default: %(default)s")
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, metavar="DIR", help="default: %(default)s")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.what == "model":
            package_model(parsed.target, parsed.model)
        else:
            build = package if parsed.what == "function" else package_loader
            build(parsed.target, parsed.python, parsed.architecture)
    except DeployError as error:
        print(f"deploy.package: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
