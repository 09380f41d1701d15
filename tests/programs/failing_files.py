"""A folder whose reads fail with EIO where another file says so. Arguments: folder, mount, faults.

Each line of `faults` is `NAME BEGIN END`: reads that touch these bytes of files of this name, or of the file that has
this number as its inode, fail. The file is read
anew at each read. Opening a file drops what the page cache holds of it, mapped pages too.
"""

import errno
import os
import sys
from pathlib import Path

from mfusepy import FUSE, FuseOSError

from benchmarks.slow_files import read_only

folder, mount, faults = sys.argv[1:]


class FailingFiles(read_only(folder)):  # type: ignore[misc]
    """`folder`, with faults, and with what the loader needs to write to it."""

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        for line in Path(faults).read_text().splitlines():
            name, begin, end = line.split()
            if name in (Path(path).name, str(os.fstat(fh).st_ino)) and offset < int(end) and offset + size > int(begin):
                raise FuseOSError(errno.EIO)
        return super().read(path, size, offset, fh)

    def open(self, path: str, flags: int) -> int:
        return os.open(folder + path, flags)

    def create(self, path: str, mode: int, fi: object = None) -> int:
        return os.open(folder + path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def fsync(self, path: str, datasync: bool, fh: int) -> int:
        os.fsync(fh)
        return 0

    def mkdir(self, path: str, mode: int) -> None:
        Path(folder + path).mkdir(mode)

    def link(self, target: str, source: str) -> None:
        Path(folder + target).hardlink_to(folder + source)

    def rename(self, old: str, new: str) -> None:
        Path(folder + old).replace(folder + new)

    def unlink(self, path: str) -> None:
        Path(folder + path).unlink()

    def rmdir(self, path: str) -> None:
        Path(folder + path).rmdir()


FUSE(FailingFiles(), mount, foreground=True, fsname="failing")
