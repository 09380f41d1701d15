"""A folder behind a slow file system, as a stand-in for EFS: each read takes 1 to 3 ms, all together run at 100 MB/s.

Needs /dev/fuse, the library libfuse and the right to mount. Linux.
"""

from __future__ import annotations

import ctypes.util
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READ_SECONDS = (0.001, 0.003)
BYTES_PER_SECOND = 100e6


def unavailable() -> str | None:
    """Why no such folder can be mounted here, or None."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or may not be opened"
    if not (ctypes.util.find_library("fuse3") or ctypes.util.find_library("fuse")):
        return "libfuse is missing, install it with: apt-get install fuse3"
    return None


@contextmanager
def slow(folder: Path, mount: Path) -> Iterator[None]:
    """`folder` read-only at `mount`, an empty folder, until the block ends."""
    command = [sys.executable, "-m", "benchmarks.slow_files", str(folder.resolve()), str(mount)]
    # libfuse 3 warns of a number of threads that nobody set.
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            while not mount.is_mount():
                if process.poll() is not None:
                    raise OSError(f"cannot mount {mount}: the file system ended with status {process.returncode}")
                time.sleep(0.01)
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(mount)], check=False, stderr=subprocess.DEVNULL)  # noqa: S603, S607
            process.terminate()


def read_only(folder: str) -> Any:
    """A class of FUSE operations that show a folder as it is, for others that differ in one of them."""
    from mfusepy import Operations

    class ReadOnly(Operations):  # type: ignore[misc]
        """`folder`, without a way to change it."""

        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, float]:
            found = os.lstat(folder + path)
            plain = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")
            times = {name: getattr(found, f"{name}_ns") for name in ("st_atime", "st_mtime", "st_ctime")}
            return {name: getattr(found, name) for name in plain} | times

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(folder + path)]  # noqa: PTH208

        def open(self, path: str, flags: int) -> int:
            return os.open(folder + path, os.O_RDONLY)

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

    return ReadOnly


def _serve(folder: str, mount: str) -> None:
    from mfusepy import FUSE

    class SlowFiles(read_only(folder)):  # type: ignore[misc]
        """Reads sleep side by side; the line to the server is one, so transfers follow one another."""

        def __init__(self) -> None:
            self._line = threading.Lock()
            self._free = 0.0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            data = os.pread(fh, size, offset)
            with self._line:
                self._free = max(self._free, time.monotonic()) + len(data) / BYTES_PER_SECOND
                transferred = self._free
            latency = random.uniform(*READ_SECONDS)  # noqa: S311  not for secrets
            time.sleep(max(0.0, transferred - time.monotonic()) + latency)
            return data

    # kernel_cache: an unchanged file stays in the page cache from one opening to the next, as NFS keeps it.
    FUSE(SlowFiles(), mount, foreground=True, ro=True, kernel_cache=True, fsname="slow")


if __name__ == "__main__":
    _serve(*sys.argv[1:])
