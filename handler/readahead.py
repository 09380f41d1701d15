"""Fill the page cache with a file while Python is busy with other things."""

import os
import threading

CHUNK_BYTES = 1 << 20
"""A large read keeps the line to a file server busy; page faults of a mapped file ask for 128 KB and wait."""


def read_ahead(path: str) -> threading.Thread | None:
    """Start to read a file from its start to its end; None where its last part is in the page cache already.

    What cannot be read is left to the reader proper, which says so: no error is raised.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    if _is_cached(descriptor):
        os.close(descriptor)
        return None
    thread = threading.Thread(target=_read, args=(descriptor,), daemon=True)
    thread.start()
    return thread


def _is_cached(descriptor: int) -> bool:
    """Linux tells by a read that may not wait (preadv2(2), RWF_NOWAIT); elsewhere the answer is False."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        last = max(0, os.fstat(descriptor).st_size - 1)
        return os.preadv(descriptor, [bytearray(1)], last, os.RWF_NOWAIT) == 1
    except OSError:  # EAGAIN: not cached; EOPNOTSUPP: the file system does not tell
        return False


def _read(descriptor: int) -> None:
    buffer = bytearray(CHUNK_BYTES)
    try:
        while os.readv(descriptor, [buffer]):
            pass
    except OSError:
        pass
    finally:
        os.close(descriptor)
