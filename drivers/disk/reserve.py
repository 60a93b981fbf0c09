"""Files that take up room, to be given up when the disk is full: removing something must work then above all.

The metadata store needs some room for any transaction, and even to be opened: blocks, and two inodes
(sqlite.org/wal.html). The files are given up when there is hardly any left and taken again when there is. In between,
the room belongs to whoever writes first; so a container that fills the disk without pause has to be stopped before it
can be removed, and removing does begin with that.

Whether there is room is tried, not computed, unless there is plenty. What statfs(2) calls free cannot always be had,
and what it calls available is not all that root can have: ext4 counts clusters as free that it keeps for itself
(ext4_statfs(), s_resv_clusters), and others as not available that it keeps for root; btrfs can have data left and no
metadata.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, suppress

from unionfs.linux import consts
from unionfs.linux.files import file_system_type

# For the log's index, 32 KiB, and a few dozen pages of log; and for the log, its index, and what others have to write.
SIZE, FILES = 512 << 10, 8
_PIECE = SIZE // FILES
# btrfs keeps metadata apart, and asks for megabytes of it to make or rename a file (btrfs_calc_insert_metadata_size());
# attributes are metadata, each of these almost a block.
_METADATA = "metadata"
_ATTRIBUTE, _ATTRIBUTES = 16000, 384
_PLENTY, _PLENTY_FILES = 16 << 20, 1000


def has_room(directory: str, size: int = SIZE) -> bool:
    """Whether so many bytes in a few files can be written on the directory's file system."""
    status = os.statvfs(directory)
    available = status.f_bavail * status.f_frsize
    counts_files = status.f_files > 0  # btrfs makes inodes as they are wanted
    if available >= _PLENTY and not (counts_files and status.f_favail < _PLENTY_FILES):
        return True
    with ExitStack() as held:
        try:
            for _ in range(FILES):
                fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
                held.callback(os.close, fd)
                os.posix_fallocate(fd, 0, size // FILES)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):  # no unnamed files there (open(2))
                return available >= size
            return False
    return True


def maps_need_room(directory: str) -> bool:
    """Whether changing a page of a mapped file takes room even where the file has blocks: without room that is a SIGBUS
    (fs/btrfs/file.c, btrfs_page_mkwrite())."""
    return _type(directory) in (consts.BTRFS_SUPER_MAGIC, consts.BCACHEFS_STATFS_MAGIC)


def give_up(path: str) -> None:
    for file in (*(f"{path}/{name}" for name in _names(path)), path):  # one file was what older versions made
        with suppress(OSError):
            os.unlink(file)


def take(path: str) -> None:
    """Make what is missing of the files in the directory `path`, if there is ample room; that there is none is not a
    failure."""
    if is_whole(path) or not has_room(os.path.dirname(path), 4 * SIZE):
        return
    with suppress(OSError):
        if os.path.lexists(path) and not os.path.isdir(path):
            os.unlink(path)
        os.makedirs(path, 0o700, exist_ok=True)
        for name in _names(path):
            fd = os.open(f"{path}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if name == _METADATA:
                    for number in range(_ATTRIBUTES):
                        os.setxattr(fd, f"trusted.reserve.{number}", bytes(_ATTRIBUTE))
                os.posix_fallocate(fd, 0, _PIECE)
            finally:
                os.close(fd)


def is_whole(path: str) -> bool:
    """Whether all of it is there."""
    try:
        return all(os.stat(f"{path}/{name}").st_size == _PIECE for name in _names(path))
    except OSError:
        return False


def _names(path: str) -> list[str]:
    names = [str(number) for number in range(FILES)]
    return [*names, _METADATA] if _type(os.path.dirname(path)) == consts.BTRFS_SUPER_MAGIC else names


def _type(directory: str) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return file_system_type(fd)
    finally:
        os.close(fd)
