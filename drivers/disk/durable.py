"""What must survive a power cut: files that are then whole, as they are or as they were, and names that stay.

rename(2) alone promises neither: the new name can reach the disk before the content, which is then empty or cut short,
or not at all (fsync(2), "Calling fsync() does not necessarily ensure that the entry in the directory has also reached
disk"). So each record that something else depends on is first written here: a new file, its content synced, the name,
the directory synced. What does not outlast the machine's run (--state) needs none of this.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress

from unionfs.linux import libc

FRESH = ".new"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_syncfs = libc.bind("syncfs", ctypes.c_int)


def replace(path: str, content: bytes, *, mode: int = 0o600, first: Sequence[str] = ()) -> None:
    """Make `content` the file `path`, durably: afterwards it is there, and at any moment it or what was there before.

    The directories `first` are synced before the file gets its name, since from then on the names in them count. One
    writer at a time: the new file is PATH.new. Raises OSError, which names `path`; nothing is changed then, unless it
    was the last sync that failed.
    """
    fresh = path + FRESH
    try:
        with suppress(FileNotFoundError):
            os.unlink(fresh)  # left by a writer that was killed, whatever it is
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            for directory in first:
                sync_directory(directory)
            os.rename(fresh, path)
        except BaseException:
            os.unlink(fresh)
            raise
        sync_directory(os.path.dirname(path) or ".")
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None  # write(2) and fsync(2) name no file


def make_directories(path: str, mode: int = 0o700) -> None:
    """Make the directory, and what is missing above it (0755), and their names durable; what is there stays as it is.

    Raises OSError.
    """
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path) or "."
    make_directories(parent, 0o755)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    sync_directory(parent)


def sync_directory(path: str) -> None:
    """Make the names in the directory `path` durable, and its own mode and attributes."""
    fd = os.open(path, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(path: str) -> None:
    """Write everything of the file system that `path` is on to the disk: data and names. See syncfs(2).

    Since Linux 5.8 it raises OSError (EIO, ENOSPC …) for a write-back that failed since the descriptor was opened.
    """
    fd = os.open(path, _DIRECTORY)
    try:
        _syncfs(fd)
    finally:
        os.close(fd)
