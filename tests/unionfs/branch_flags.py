"""The inode flags of files in branches, set from outside of the union."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from unionfs.linux import files
from unionfs.linux.consts import FS_APPEND_FL, FS_IMMUTABLE_FL, FS_NOATIME_FL, FS_NODUMP_FL

PORTABLE = FS_IMMUTABLE_FL | FS_APPEND_FL | FS_NODUMP_FL | FS_NOATIME_FL


def settable(path: Path) -> bool:
    try:
        change(path, FS_IMMUTABLE_FL)
    except OSError:
        return False
    change(path, 0)
    return True


@contextlib.contextmanager
def descriptor(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def change(path: Path, flags: int) -> None:
    """Set the portable flags of a branch's file to `flags`."""
    with descriptor(path) as fd:
        files.set_flags(fd, files.get_flags(fd) & ~PORTABLE | flags)
