"""A read-only folder whose reads fail with EIO where another file says so. Arguments: folder, mount, faults.

Each line of `faults` is `NAME BEGIN END`: reads that touch these bytes of files of this name fail. The file is read
anew at each read. Opening a file drops what the page cache holds of it, mapped pages too.
"""

import errno
import os
import sys
from pathlib import Path

from mfusepy import FUSE, FuseOSError, Operations

folder, mount, faults = sys.argv[1:]


class FailingFiles(Operations):
    """`folder`, with faults."""

    use_ns = True

    def getattr(self, path: str, fh: int | None = None) -> dict[str, float]:
        found = os.lstat(folder + path)
        plain = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")
        times = {name: getattr(found, f"{name}_ns") for name in ("st_atime", "st_mtime", "st_ctime")}
        return {name: getattr(found, name) for name in plain} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *(found.name for found in Path(folder + path).iterdir())]

    def open(self, path: str, flags: int) -> int:
        return os.open(folder + path, os.O_RDONLY)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        for line in Path(faults).read_text().splitlines():
            name, begin, end = line.split()
            if name == Path(path).name and offset < int(end) and offset + size > int(begin):
                raise FuseOSError(errno.EIO)
        return os.pread(fh, size, offset)


FUSE(FailingFiles(), mount, foreground=True, ro=True, fsname="failing")
