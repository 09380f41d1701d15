"""Read the files that a model needs, and compare their checksums, while Python is busy with other things.

A damaged byte would otherwise give wrong vectors without an error. Reading ahead, in several places at once, also uses
the connection to a file server fully: page faults of a mapped file ask for 128 KB at a time and wait.
"""

import os
import threading
import zlib
from os.path import join

from artifact.manifest import REBUILD, Artifact, ArtifactCorruptError

CHUNK_BYTES = 1 << 20
"""Bytes of one read of a file that is not in the page cache."""

READERS = 4
"""Threads that read a file that is not in the page cache."""

PIECE_BYTES = 4 << 20
"""Bytes of one read of a cached file: many, since each read may wait 5 ms for Python's global lock, twice."""


class FileCheck:
    """A running check of one precision's files."""

    def __init__(self, artifact: Artifact, precision: str) -> None:
        """Start the check. Raises ArtifactNotFoundError as `Artifact.model` does."""
        files = [
            (join(artifact.folder, name), artifact.manifest.files[name].crc32) for name in artifact.files_of(precision)
        ]
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(files,), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the check to end.

        Raises ArtifactCorruptError that names the first damaged or unreadable file, or whatever else ended the check.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, files: list[tuple[str, int]]) -> None:
        for path, expected in files:
            try:
                found = crc32(path)
            except OSError as error:
                self._error = ArtifactCorruptError(f"cannot read {path}: {error.strerror}: {REBUILD}")
                return
            except BaseException as error:  # noqa: BLE001  raised again by `finish`
                self._error = error
                return
            if found != expected:
                self._error = ArtifactCorruptError(
                    f"{path} is damaged: it has CRC-32 {found:08x}, the manifest says {expected:08x}: {REBUILD}"
                )
                return


def crc32(path: str) -> int:
    """CRC-32 of a file, which is in the page cache afterwards. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if not _is_cached(descriptor, size):
            _read_all(descriptor, size)
        # Read, not mapped: a page that cannot be read then raises an error and does not end the process.
        buffer = bytearray(min(size, PIECE_BYTES))
        checksum = offset = 0
        while count := os.preadv(descriptor, [buffer], offset):
            checksum = zlib.crc32(memoryview(buffer)[:count], checksum)
            offset += count
        return checksum
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, size: int) -> None:
    """Read a file from several places at once, since each read waits for a file server. Raises OSError."""
    errors: list[OSError] = []

    def read(begin: int, end: int) -> None:
        buffer = bytearray(CHUNK_BYTES)
        try:
            for offset in range(begin, end, CHUNK_BYTES):
                os.preadv(descriptor, [buffer], offset)
        except OSError as error:
            errors.append(error)

    share = -(-size // READERS // CHUNK_BYTES) * CHUNK_BYTES
    threads = [threading.Thread(target=read, args=(at, min(at + share, size))) for at in range(0, size, share or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _is_cached(descriptor: int, size: int) -> bool:
    """Whether a file's last byte is in the page cache.

    Linux answers by a read that must not wait (preadv2(2), RWF_NOWAIT); elsewhere the answer is False.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return os.preadv(descriptor, [bytearray(1)], max(0, size - 1), os.RWF_NOWAIT) == 1
    except OSError:  # EAGAIN: not cached; EOPNOTSUPP: the file system cannot say
        return False
