"""Packages of Lambda's Python."""

from pathlib import Path

from artifact.manifest import sha256
from deploy import DeployError
from deploy.package import LAMBDA_PYTHON, interpreter


def no_python() -> str | None:
    """Why there is no Python of Lambda's version; None if there is one."""
    try:
        interpreter(LAMBDA_PYTHON)
    except DeployError as error:
        return str(error)
    return None


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
