"""The Lambda function that puts versions of a model onto the file system. Handler: `loader.app.lambda_handler`.

Events, with plain names as MODEL and VERSION, and what they return:

    {"action": "load", "model": MODEL, "version": VERSION}   copy a version from the bucket, and put it into use
    {"action": "use", "model": MODEL, "version": VERSION}    put a version that is on the file system into use
    {"action": "list", "model": MODEL}                       the versions on the file system
    {"action": "prune", "model": MODEL, "keep": N}           remove all but the one in use and the N newest others

Environments of the function that embeds take the version in use when they start, and stay with it.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifact import store
from artifact.manifest import CURRENT, MANIFEST, ArtifactError, ArtifactNotFoundError, is_name
from artifact.store import StorageError
from loader.bucket import AGAIN, Bucket
from loader.errors import (
    ConfigurationError,
    InvalidRequestError,
    LoaderError,
    ObjectCorruptError,
    StorageFullError,
    VersionCorruptError,
    VersionMissingError,
)

LOCK_SECONDS = 30.0
"""How long a call waits for another one that writes to the same model: long enough to copy some hundred megabytes."""

KEEP_VERSIONS = 3
"""Versions beside the one in use that `load` keeps, unless KEEP_VERSIONS says otherwise.

A running environment has mapped the files of the version that it started with, maybe hours ago. NFS, unlike a local
disk, does not keep deleted files for those who have them open: the next read of a page that is not in memory fails
(ESTALE), which ends the process with SIGBUS. So old versions are kept as long as environments may live, including their
damaged files that `load` has replaced.
"""


@dataclass(frozen=True)
class Request:
    """What an event asks for."""

    action: str
    model: str
    version: str
    keep: int


@dataclass(frozen=True)
class Settings:
    """The environment variables."""

    models: Path
    """MODEL_CACHE_DIR, where the file system is mounted."""
    keep: int
    """KEEP_VERSIONS."""

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the environment. Raises ConfigurationError, or StorageError if the file system is not mounted."""
        keep = os.environ.get("KEEP_VERSIONS", "") or str(KEEP_VERSIONS)
        if not keep.isdecimal():
            raise ConfigurationError(f"KEEP_VERSIONS is {keep!r}: set it to a whole number from 0, or leave it unset")
        models = Path(os.environ.get("MODEL_CACHE_DIR", "/mnt/ml-models"))
        if not models.is_dir():
            raise StorageError(f"MODEL_CACHE_DIR is {models}, which is not a folder: set it to where EFS is mounted")
        return cls(models, int(keep))


def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Do what the event asks for, and log one JSON line.

    Raises LoaderError or StoreError, whose class and message Lambda passes on to the caller.
    """
    started = time.monotonic()
    line: dict[str, Any] = {"level": "INFO", "request_id": getattr(context, "aws_request_id", None)}
    try:
        request = _parse(event)
        line |= {name: value for name, value in asdict(request).items() if name in _FIELDS[request.action]}
        settings = Settings.from_environment()
        with _storage_errors(settings.models):
            result = ACTIONS[request.action](request, settings)
        line["result"] = result
    except Exception as error:
        line |= {"level": "ERROR", "error": {"type": type(error).__name__, "message": str(error)}}
        raise
    finally:
        print(json.dumps({**line, "seconds": round(time.monotonic() - started, 3)}), flush=True)
    return result


def load(request: Request, settings: Settings) -> dict[str, Any]:
    """Copy a version from the bucket, put it into use, and remove versions beyond those to keep."""
    folder = settings.models / request.model
    bucket = Bucket(_artifact_bucket())
    manifest, manifest_bytes = bucket.manifest(request.model, request.version)
    with store.staging(folder, LOCK_SECONDS) as workdir:
        previous = store.current_of(folder)
        store.make_way(folder, request.version)
        built = workdir / "version"
        if copied := not store.is_intact(folder / request.version):
            built.mkdir()
            for name, entry in manifest.files.items():
                if not store.take_over(folder / request.version / name, built / name, entry):
                    bucket.copy(f"{request.model}/{request.version}/{name}", built / name, entry)
            (built / MANIFEST).write_bytes(manifest_bytes)
            try:
                store.install(built, folder, request.version)
            except ArtifactError as error:
                raise ObjectCorruptError(f"version {request.version} cannot be opened: {error}: {AGAIN}") from error
        else:
            store.switch_current(folder, request.version)
        # Running environments have the previous version, however old. If it is not known, it may be any, so none goes.
        removed, _ = store.prune(folder, settings.keep, protected=previous) if previous else ([], [])
    size = sum(entry.size for entry in manifest.files.values())
    return {"version": request.version, "previous": previous, "copied": copied, "size": size, "removed": removed}


def use(request: Request, settings: Settings) -> dict[str, Any]:
    """Put a version that is on the file system into use, after checking every byte."""
    folder = settings.models / request.model
    if request.version not in store.names(folder):
        has = ", ".join(store.names(folder)) or "none"
        raise VersionMissingError(
            f"{folder} has no version {request.version}, only: {has}: use one of these, or {AGAIN}"
        )
    with store.locked(folder, LOCK_SECONDS):
        try:
            store.open_version(folder, request.version)
        except ArtifactNotFoundError as error:
            raise VersionMissingError(f"{error}; on this file system: {AGAIN}") from error
        except ArtifactError as error:
            raise VersionCorruptError(f"{error}; on this file system: {AGAIN}") from error
        previous = store.current_of(folder)
        store.switch_current(folder, request.version)
    return {"version": request.version, "previous": previous}


def list_versions(request: Request, settings: Settings) -> dict[str, Any]:
    """The versions on the file system, newest first, after checking every byte of them."""
    folder = settings.models / request.model
    found = sorted((store.describe(folder, name) for name in store.names(folder)), key=lambda each: each.created)
    versions = [
        {
            "version": each.name,
            "created": each.created,
            "size": each.size,
            "current": each.is_current,
            "intact": each.problem is None,
            "problem": each.problem,
        }
        for each in reversed(found)
    ]
    return {"current": store.current_of(folder), "versions": versions}


def prune(request: Request, settings: Settings) -> dict[str, Any]:
    """Remove versions, and what killed copies left; `problems` lists what could not be removed."""
    folder = settings.models / request.model
    if not folder.is_dir():
        return {"removed": [], "leftovers": 0, "problems": []}
    with store.locked(folder, LOCK_SECONDS):
        leftovers, stuck = store.remove_leftovers(folder)
        removed, kept = store.prune(folder, request.keep)
    return {"removed": removed, "leftovers": leftovers, "problems": [*stuck, *kept]}


ACTIONS: Mapping[str, Callable[[Request, Settings], dict[str, Any]]] = {
    "load": load,
    "use": use,
    "list": list_versions,
    "prune": prune,
}
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "load": ("action", "model", "version"),
    "use": ("action", "model", "version"),
    "list": ("action", "model"),
    "prune": ("action", "model", "keep"),
}
"""Action -> the fields of its event."""


def _parse(event: Any) -> Request:
    """Check the whole event. Raises InvalidRequestError."""
    action = event.get("action") if isinstance(event, dict) else None
    if not isinstance(action, str) or action not in ACTIONS:
        raise InvalidRequestError(f"the event's action is {_short(action)}, not one of {', '.join(ACTIONS)}")
    fields = _FIELDS[action]
    for name in [*fields, *event]:
        if name not in event or name not in fields:
            problem = "is unknown" if name in event else "is missing"
            raise InvalidRequestError(f"{action} takes the fields {', '.join(fields)}: {_short(name)} {problem}")
    for name in ("model", "version"):
        value = event.get(name, "none")
        if not isinstance(value, str) or not is_name(value):  # which keeps paths out
            raise InvalidRequestError(
                f"{name} is {_short(value)}: use letters and digits, inside also . - _, "
                f"but not {CURRENT} or a name that Windows reserves, such as NUL"
            )
    keep = event.get("keep", 0)
    if type(keep) is not int or keep < 0:
        raise InvalidRequestError(f"keep is {_short(keep)}, not a whole number from 0")
    return Request(action, event["model"], event.get("version", ""), keep)


def _short(value: Any) -> str:
    return repr(value)[:100]


def _artifact_bucket() -> str:
    name = os.environ.get("ARTIFACT_BUCKET", "")
    if not name:
        raise ConfigurationError("ARTIFACT_BUCKET is not set: set it to the bucket that has the versions of the model")
    return name


@contextmanager
def _storage_errors(models: Path) -> Iterator[None]:
    """Turn the system's errors about the file system into the loader's."""
    try:
        yield
    except (LoaderError, store.StoreError):
        raise
    except OSError as error:
        where = error.filename2 or error.filename or models
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                f"{models} is full ({error.strerror}), the version in use is untouched: make room with the action "
                'prune, such as {"action": "prune", "model": MODEL, "keep": 0}'
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageError(
                f"{where} cannot be written to ({error.strerror}): the loader's role needs "
                "elasticfilesystem:ClientWrite, and the access point's user must own the folder"
            ) from error
        raise StorageError(f"{where}: {error.strerror or error}: call again; if it stays, check EFS's state") from error
