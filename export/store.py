"""Writes artifact folders: built aside, made durable, renamed into place, `current` switched last.

Whatever moment the process dies at, a reader finds the old version or the new one, whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export import ExportError
from handler.artifact import CURRENT, ArtifactError, open_artifact

_STAGING = ".staging-"


@contextmanager
def staging(model_folder: Path) -> Iterator[Path]:
    """A fresh folder beside the versions to build in, removed at the end; what killed exports left is removed first.

    Raises ExportError if another export is at work on this model folder.
    """
    model_folder.mkdir(parents=True, exist_ok=True)
    with (model_folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it however the process ends
        except BlockingIOError:
            raise ExportError(f"another export is writing to {model_folder}: wait until it has ended") from None
        for leftover in model_folder.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover)
        folder = model_folder / f"{_STAGING}{os.getpid()}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def install(built: Path, model_folder: Path, version: str) -> bool:
    """Move the finished version folder `built`, inside the staging folder, into place and switch `current` to it.

    Returns False if that very version was there already, intact; then only `current` is written.
    """
    target = model_folder / version
    is_new = not _is_intact(target)
    if is_new:
        _sync_tree(built)
        if target.exists():  # damaged: no reader has use for it
            target.rename(built.parent / "damaged")
        built.rename(target)
        _sync(model_folder)
    switch_current(model_folder, version)
    return is_new


def switch_current(model_folder: Path, version: str) -> None:
    """Name the version in use, atomically."""
    partial = model_folder / f".{CURRENT}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(version + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(model_folder / CURRENT)
    _sync(model_folder)


def _is_intact(version_folder: Path) -> bool:
    try:
        open_artifact(version_folder).check_digests()
    except ArtifactError:
        return False
    return True


def _sync_tree(folder: Path) -> None:
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
