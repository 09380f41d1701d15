"""A read-only folder whose reads fail with EIO where another file says so. Arguments: folder, mount, faults.

Each line of `faults` is `NAME BEGIN END`: reads that touch these bytes of files of this name fail. The file is read
anew at each read. Opening a file drops what the page cache holds of it, mapped pages too.
"""

import errno
import sys
from pathlib import Path

from mfusepy import FUSE, FuseOSError

from benchmarks.slow_files import read_only

folder, mount, faults = sys.argv[1:]


class FailingFiles(read_only(folder)):
    """`folder`, with faults."""

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        for line in Path(faults).read_text().splitlines():
            name, begin, end = line.split()
            if name == Path(path).name and offset < int(end) and offset + size > int(begin):
                raise FuseOSError(errno.EIO)
        return super().read(path, size, offset, fh)


FUSE(FailingFiles(), mount, foreground=True, ro=True, fsname="failing")
