"""Writes artifact folders: built aside, made durable, renamed into place, `current` switched last.

Whenever the process dies, a reader finds the old version or the new one, whole.

In a model folder, these are ours: versions, which are folders with a manifest; `current`; `.lock`; and names that begin
with `.staging-`. All else is left alone, and links are never followed when something is written or removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from artifact import manifest as reader
from artifact.manifest import (
    CURRENT,
    MANIFEST,
    Artifact,
    ArtifactError,
    ArtifactNotFoundError,
    FileEntry,
    current_version,
    is_name,
    sha256,
)

_STAGING = ".staging-"
_REPLACED = ".replaced-"
"""Beginning of the names of damaged files that were replaced."""
_POLL_SECONDS = 0.1


class StoreError(Exception):
    """A model folder cannot be written to; the message says what is wrong, with the value, and what to do about it."""


class BusyError(StoreError):
    """Another process is writing to the model folder."""


class StorageError(StoreError):
    """The file system is not there, may not be written to, or failed."""


@dataclass(frozen=True)
class Version:
    """A version in a model folder."""

    name: str
    created: str
    """The manifest's time; empty if it cannot be read."""
    size: int
    """Bytes of its files."""
    is_current: bool
    problem: str | None
    """What is wrong with it; None if every file has the SHA-256 that the manifest says."""


@contextmanager
def locked(model_folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a model folder, after waiting up to `wait` seconds for other writers.

    Raises BusyError; StorageError if something else is in the place of the folder or of its lock.
    """
    try:
        model_folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise _in_the_way(Path(error.filename), "folder") from error
    path = model_folder / ".lock"
    descriptor = _open_lock(path)
    try:
        deadline = time.monotonic() + wait
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                waited = f" for over {wait:g} s" if wait else ""
                raise BusyError(
                    f"another process is writing to {model_folder}{waited} and holds {path}: try again later"
                )
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def staging(model_folder: Path, wait: float = 0.0) -> Iterator[Path]:
    """A new folder beside the versions, to build in; removed at the end. Leftovers of killed processes go first.

    Raises BusyError and StorageError as `locked` does.
    """
    with locked(model_folder, wait):
        remove_leftovers(model_folder)
        folder = _fresh(model_folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(model_folder: Path) -> tuple[int, list[str]]:
    """Remove what killed processes left. Only for the holder of the lock.

    Returns how many were removed, and a message for each that cannot be removed.
    """
    removed, problems = 0, []
    for name in _entries(model_folder):
        if name.startswith(_STAGING):
            try:
                _remove(model_folder / name)
                removed += 1
            except OSError as error:
                problems.append(_cannot_remove(model_folder / name, error))
    return removed, problems


def take_over(path: Path, target: Path, entry: FileEntry) -> bool:
    """Make `target` a hard link to `path`, if that is the file of `entry`. Returns whether it could be done."""
    if not _is_right(path, entry):
        return False
    try:
        target.hardlink_to(path)
    except OSError:
        return False
    return True


def install(built: Path, model_folder: Path, version: str) -> bool:
    """Move the finished version folder `built`, inside the staging folder, into place and switch `current` to it.

    Returns False if that very version was there already, intact; then only `current` is written. In a damaged version
    only the damaged files are replaced, since running environments may have mapped the others.
    Raises ArtifactNotFoundError or ArtifactCorruptError if `built` cannot be opened; StorageError as `make_way` does.
    """
    make_way(model_folder, version)
    target = model_folder / version
    is_new = not is_intact(target)
    if is_new:
        artifact = reader.open_version(str(built), version)
        _sync_tree(built)
        if _is_folder(target):
            _mend(target, built, artifact)
        else:
            built.rename(target)
        _sync(model_folder)
    switch_current(model_folder, version)
    return is_new


def make_way(model_folder: Path, version: str) -> None:
    """Make sure that nothing else is in the place of a version.

    Raises StorageError that names what is there.
    """
    target = model_folder / version
    if _is_there(target) and not _is_folder(target):
        raise _in_the_way(target, "folder")
    twins = [name for name in names(model_folder) if name.lower() == version.lower()]
    if twins and version not in twins:
        raise StorageError(
            f"{model_folder / twins[0]} is in the way: its name differs from {version} in case alone, and some file "
            "systems take both for one: give the version another name"
        )


def switch_current(model_folder: Path, version: str) -> None:
    """Name the version in use, atomically.

    Raises StorageError if `current` is a folder.
    """
    target = model_folder / CURRENT
    if _is_folder(target):
        raise _in_the_way(target, "file")
    partial = _fresh(model_folder)
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(version + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
    _sync(model_folder)


def open_version(model_folder: Path, version: str) -> Artifact:
    """Open a version and check every byte of it.

    Raises ArtifactNotFoundError, ArtifactCorruptError.
    """
    artifact = reader.open_version(str(model_folder / version), version)
    artifact.check_digests()
    return artifact


def is_intact(version_folder: Path) -> bool:
    """Whether a version is there and every file has the SHA-256 that the manifest says."""
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
    """Names of the folders in a model folder that may be versions. Raises StorageError."""
    return [name for name in _entries(model_folder) if is_name(name) and _is_folder(model_folder / name)]


def describe(model_folder: Path, name: str) -> Version:
    """Describe a version, after reading all of its files."""
    folder = model_folder / name
    problem = None
    try:
        open_version(model_folder, name)
    except ArtifactError as error:
        problem = str(error)
    return Version(name, _created(folder), _size(folder), name == current_of(model_folder), problem)


def prune(model_folder: Path, keep: int, protected: str | None = None) -> tuple[list[str], list[str]]:
    """Remove all versions but the current one, `protected`, and the `keep` newest of the others.

    Only for the holder of the lock. Versions that cannot be read count as the oldest; folders without a manifest are
    left alone. Returns the names of those removed, and a message for each that cannot be removed.
    Raises StorageError if `current` cannot be read.
    """
    try:
        in_use = current_version(str(model_folder))
    except ArtifactNotFoundError:
        in_use = None
    except ArtifactError as error:
        raise StorageError(
            f"{error}; no version is removed while the one in use is unknown: put one into use first"
        ) from error
    others = [
        name
        for name in names(model_folder)
        if name not in (in_use, protected) and _is_there(model_folder / name / MANIFEST)
    ]
    removed, problems = [], []
    for name in sorted(others, key=lambda name: _created(model_folder / name), reverse=True)[keep:]:
        aside = _fresh(model_folder)  # a reader finds it whole or not at all
        try:
            _check_mounts(model_folder / name)
            (model_folder / name).rename(aside)
            removed.append(name)
            _remove(aside)
        except OSError as error:
            problems.append(_cannot_remove(model_folder / name, error))
    return sorted(removed), problems


def _mend(target: Path, built: Path, artifact: Artifact) -> None:
    """Replace the files of a version that are not those of `built`, the manifest last.

    Each replaced file stays linked beside its successor as long as the version exists: NFS would otherwise take it from
    environments that have mapped it.
    """
    manifest = built / MANIFEST
    last = (MANIFEST, FileEntry(manifest.stat().st_size, sha256(manifest), 0))
    for name, entry in [*artifact.manifest.files.items(), last]:
        if not _is_right(target / name, entry):
            _replace(target / name, built / name)
    _sync(target)


def _replace(path: Path, successor: Path) -> None:
    """Replace what is at `path`, if anything, by another file, in one step."""
    aside = path.with_name(f"{_REPLACED}{uuid4().hex}")
    try:
        os.link(path, aside, follow_symlinks=False)
    except FileNotFoundError:
        pass
    except OSError:  # a folder, or a file system without links
        path.rename(aside)
    successor.replace(path)


def _is_right(path: Path, entry: FileEntry) -> bool:
    try:
        return _is_file(path) and path.stat().st_size == entry.size and sha256(path) == entry.sha256
    except OSError:
        return False


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _is_file(path: Path) -> bool:
    """Whether there is a regular file, not a link to one."""
    return stat.S_ISREG(_mode(path))


def _is_folder(path: Path) -> bool:
    """Whether there is a folder, not a link to one."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """Type and permissions of what is at `path`; 0 if there is nothing, or it cannot be read."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _fresh(model_folder: Path) -> Path:
    """A path that does not exist yet, with a name by which it is removed if this process is killed."""
    return model_folder / f"{_STAGING}{uuid4().hex}"


def _entries(model_folder: Path) -> list[str]:
    """Names of all that is in a model folder; none if there is no such folder."""
    try:
        return sorted(path.name for path in model_folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"cannot read {model_folder}: {error.strerror}: make it readable, or call again") from error


def _size(folder: Path) -> int:
    """Bytes of a folder's files, as far as they can be read."""
    size = 0
    with suppress(OSError):
        for path in folder.iterdir():
            if _is_file(path):
                size += path.lstat().st_size
    return size


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, unless another file system is mounted in it. Raises OSError."""
    if _is_folder(path):
        _check_mounts(path)
        shutil.rmtree(path)
    else:
        path.unlink()


def _check_mounts(folder: Path) -> None:
    device = folder.parent.stat().st_dev
    for inner, _, _ in os.walk(folder):
        if Path(inner).stat().st_dev != device:
            raise OSError(errno.EBUSY, "a file system is mounted there", inner)


def _cannot_remove(path: Path, error: OSError) -> str:
    inside = f"{error.filename}: " if error.filename not in (None, str(path)) else ""
    return f"cannot remove {path}: {inside}{error.strerror or error}"


def _in_the_way(path: Path, expected: str) -> StorageError:
    """The error for something else in the place of a file or folder of ours."""
    kind = _KINDS.get(stat.S_IFMT(_mode(path)), "something else")
    return StorageError(f"{path} is in the way: it is {kind}, not a {expected}: move it elsewhere")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a plain file",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def _created(folder: Path) -> str:
    try:
        return reader.open_version(str(folder)).manifest.created
    except ArtifactError:
        return ""


def _open_lock(path: Path) -> int:
    """Open the file to lock. It is never written to, in case there is a link or a device in its place."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if _is_there(path) and not _is_file(path):
            raise _in_the_way(path, "file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _in_the_way(path, "file")
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        # The kernel releases the lock however the process ends; if the whole machine ends, EFS does, some time later.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
