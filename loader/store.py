"""Writes artifact folders: built aside, made durable, renamed into place, `current` switched last.

Whatever moment the process dies at, a reader finds the old version or the new one, whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from handler.artifact import CURRENT, Artifact, ArtifactCorruptError, ArtifactError, current_version, is_name
from handler.artifact import open_artifact as open_any
from loader.errors import BusyError

_STAGING = ".staging-"
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Version:
    """A version in a model folder."""

    name: str
    created: str
    """As its manifest has it; empty where that cannot be read."""
    size: int
    """Bytes of its files."""
    is_current: bool
    problem: str | None
    """What is wrong with it; None if every file has the SHA-256 of the manifest."""


@contextmanager
def locked(model_folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Alone with a model folder, after waiting up to `wait` seconds for whoever else writes to it.

    Raises BusyError.
    """
    model_folder.mkdir(parents=True, exist_ok=True)
    path = model_folder / ".lock"
    with path.open("w") as lock:
        deadline = time.monotonic() + wait
        while not _try_lock(lock):
            if time.monotonic() >= deadline:
                waited = f" for over {wait:g} s" if wait else ""
                raise BusyError(
                    f"another process is writing to {model_folder}{waited}, it holds {path}: try again later"
                )
            time.sleep(_POLL_SECONDS)
        yield


@contextmanager
def staging(model_folder: Path, wait: float = 0.0) -> Iterator[Path]:
    """A fresh folder beside the versions to build in, removed at the end; what killed processes left is removed first.

    Raises BusyError as `locked` does.
    """
    with locked(model_folder, wait):
        remove_leftovers(model_folder)
        folder = model_folder / f"{_STAGING}{os.getpid()}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(model_folder: Path) -> int:
    """Remove what killed processes left, and say how many folders. Only for the holder of the lock."""
    leftovers = list(model_folder.glob(f"{_STAGING}*"))
    for leftover in leftovers:
        shutil.rmtree(leftover)
    return len(leftovers)


def install(built: Path, model_folder: Path, version: str) -> bool:
    """Move the finished version folder `built`, inside the staging folder, into place and switch `current` to it.

    Returns False if that very version was there already, intact; then only `current` is written.
    """
    target = model_folder / version
    is_new = not is_intact(target)
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


def open_version(model_folder: Path, version: str) -> Artifact:
    """Open a version and check every byte of it.

    Raises ArtifactNotFoundError, ArtifactCorruptError.
    """
    artifact = open_any(model_folder / version)
    if artifact.manifest.version != version:
        raise ArtifactCorruptError(f"{artifact.folder} has the manifest of version {artifact.manifest.version}")
    artifact.check_digests()
    return artifact


def is_intact(version_folder: Path) -> bool:
    """Whether a version is there and every file has the SHA-256 of the manifest."""
    if not version_folder.is_dir():
        return False
    try:
        open_version(version_folder.parent, version_folder.name)
    except ArtifactError:
        return False
    return True


def current_of(model_folder: Path) -> str | None:
    """The version in use; None if `current` is missing or unreadable."""
    try:
        return current_version(str(model_folder))
    except ArtifactError:
        return None


def names(model_folder: Path) -> list[str]:
    """Names of the versions in a model folder."""
    if not model_folder.is_dir():
        return []
    return sorted(path.name for path in model_folder.iterdir() if path.is_dir() and is_name(path.name))


def describe(model_folder: Path, name: str) -> Version:
    """What a version is, with all of its files read."""
    folder = model_folder / name
    created, problem = "", None
    try:
        created = open_any(folder).manifest.created
        open_version(model_folder, name)
    except ArtifactError as error:
        problem = str(error)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return Version(name, created, size, name == current_of(model_folder), problem)


def prune(model_folder: Path, keep: int, protected: str | None = None) -> list[str]:
    """Remove all versions but the current one, `protected`, and the `keep` newest of the others; returns their names.

    Only for the holder of the lock. Versions that cannot be read are taken for the oldest.
    """
    stay = {current_of(model_folder), protected}
    others = [name for name in names(model_folder) if name not in stay]
    removed = sorted(others, key=lambda name: _created(model_folder / name), reverse=True)[keep:]
    for name in removed:
        aside = model_folder / f"{_STAGING}removed-{name}"  # a reader finds it whole or not at all
        (model_folder / name).rename(aside)
        shutil.rmtree(aside)
    return sorted(removed)


def _created(folder: Path) -> str:
    try:
        return open_any(folder).manifest.created
    except ArtifactError:
        return ""


def _try_lock(file: IO[str]) -> bool:
    try:
        # The kernel lets go of it however the process ends; where its whole machine ends, EFS does, some time later.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
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
