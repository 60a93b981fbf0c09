"""A file that takes up room, to be given up when the disk is full: removing something must work then above all.

The metadata store needs some room for any transaction, and even to be opened (sqlite.org/wal.html). The file is given
up when there is hardly any left and taken again when there is. What is in between belongs to whoever writes first; so a
container that fills the disk without pause has to be stopped before it can be removed, which is how one is removed.
"""

from __future__ import annotations

import os
from contextlib import suppress

# For the log's index, 32 KiB, and a few dozen pages of log.
SIZE = 512 << 10


def is_full(directory: str) -> bool:
    """Whether the file system has less room left than the reserve takes, counting what is kept back for root."""
    status = os.statvfs(directory)
    return status.f_bfree * status.f_frsize < SIZE


def give_up(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def take(path: str) -> None:
    """Make the file, if it is missing and there is ample room; not to have it is no failure."""
    status = os.statvfs(os.path.dirname(path))
    if os.path.exists(path) or status.f_bfree * status.f_frsize < 4 * SIZE:
        return
    with suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, SIZE)
        finally:
            os.close(fd)
