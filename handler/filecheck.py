"""Read the files that a model needs, and compare their checksums, while Python is busy with other things.

A damaged byte would otherwise give wrong vectors without an error. Reading ahead, in several places at once, also keeps
the line to a file server busy: page faults of a mapped file ask for 128 KB and wait.
"""

import os
import threading
import zlib
from os.path import join

from artifact.manifest import REBUILD, Artifact, ArtifactCorruptError

CHUNK_BYTES = 1 << 20
"""Bytes of one read of a file that is not in the page cache."""

READERS = 4
"""Threads that read such a file."""

PIECE_BYTES = 4 << 20
"""Bytes of one read of a cached file: each read may wait 5 ms for Python's lock before and after."""


class FileCheck:
    """A check under way of the files of one precision."""

    def __init__(self, artifact: Artifact, precision: str) -> None:
        """Start it. Raises ArtifactNotFoundError as `Artifact.model` does."""
        files = [
            (join(artifact.folder, name), artifact.manifest.files[name].crc32) for name in artifact.files_of(precision)
        ]
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(files,), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for its end.

        Raises ArtifactCorruptError that names the first file that is damaged or unreadable, and whatever else ended it.
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
            except BaseException as error:  # noqa: BLE001  raised again where it is waited for
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
        # Read and not mapped: a page that cannot be read is an error then, and not the end of the process.
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

    Linux tells by a read that may not wait (preadv2(2), RWF_NOWAIT); elsewhere the answer is False.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return os.preadv(descriptor, [bytearray(1)], max(0, size - 1), os.RWF_NOWAIT) == 1
    except OSError:  # EAGAIN: not cached; EOPNOTSUPP: the file system does not tell
        return False
