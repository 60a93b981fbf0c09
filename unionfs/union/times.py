"""A directory's times, kept over a change that the union does not show."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from unionfs.linux import files


@contextlib.contextmanager
def kept(fd: int) -> Iterator[None]:
    """What is done within shows in neither time of the directory `fd`; as far as the disk lets it, for by then it is
    done."""
    entry = os.fstat(fd)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            try:
                os.utime(fd, ns=(entry.st_atime_ns, entry.st_mtime_ns))
            except OSError:  # EBADF of an O_PATH descriptor
                os.utime(files.fd_path(fd), ns=(entry.st_atime_ns, entry.st_mtime_ns))
