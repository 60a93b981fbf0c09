"""Trees on disk, however deep: walk, measure, delete.

What is in a layer was written by containers, and a container can nest directories deeper than PATH_MAX, our stack or
our descriptors reach. So nothing here recurses or holds more than a few descriptors, and no path is given to the
kernel that could be too long for it. Names are bytes; symbolic links are never followed, and mounts never crossed:
what somebody has mounted into a layer is not the layer's, and least of all to be deleted.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from drivers.api import Usage
from unionfs.linux import consts
from unionfs.linux.files import fd_path, openat2

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Half of PATH_MAX, so that one more name fits whatever its length.
_STEP = 2048
_WITHIN = consts.RESOLVE_BENEATH | consts.RESOLVE_NO_SYMLINKS | consts.RESOLVE_NO_XDEV


def open_below(root_fd: int, path: bytes) -> int:
    """Open the directory `path`, relative to `root_fd` and of any length; b"" is the root itself.

    Raises OSError: ELOOP or ENOTDIR for a symbolic link on the way, EXDEV for a mount.
    """
    fd = openat2(root_fd, b".", DIRECTORY, resolve=_WITHIN)
    while path:
        if len(path) > _STEP:
            cut = path.rindex(b"/", 0, _STEP)
            step, path = path[:cut], path[cut + 1 :]
        else:
            step, path = path, b""
        try:
            below = openat2(fd, step, DIRECTORY, resolve=_WITHIN)
        finally:
            os.close(fd)
        fd = below
    return fd


def open_regular(dir_fd: int, name: bytes) -> int:
    """Open the regular file `name` of the directory `dir_fd` for reading, and nothing else that may be in its place.

    A container may exchange it at any moment. So it is looked at without being opened, and what was looked at is then
    opened: a device never is, and a FIFO is not waited for. Raises OSError, ESTALE for what is not a regular file.
    """
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)
        # Without O_NONBLOCK, which would fail on a file whose lease (fcntl(2)) is being broken; that takes 45 seconds
        # at most.
        return os.open(fd_path(place), os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(place)


def entries(fd: int) -> list[os.DirEntry[bytes]]:
    """The entries of a directory, all at once: what a stream gives while the directory changes is not defined
    (readdir(3)). Their `path` is good while `fd` is open."""
    with os.scandir(fd_path(fd)) as scan:
        return list(scan)


def walk(root_fd: int) -> Iterator[tuple[bytes, int, list[os.DirEntry[bytes]]]]:
    """Every directory: its path below the root (b"" for the root), a descriptor valid until the next, and its entries.

    Parents come before their children. A directory that vanishes while we walk is left out.
    """
    pending = [b""]
    while pending:
        path = pending.pop()
        try:
            fd = open_below(root_fd, path)
        except FileNotFoundError:
            continue
        try:
            found = entries(fd)
            prefix = path + b"/" if path else b""
            pending += [prefix + entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
            yield path, fd, found
        finally:
            os.close(fd)


def disk_usage(path: str) -> Usage:
    """Inodes and allocated bytes of the tree at `path`, itself included; each file once, however many names it has.

    The tree may be in use: what vanishes meanwhile is not counted.
    """
    seen: set[tuple[int, int]] = set()
    inodes = size = 0
    root_fd = os.open(path, DIRECTORY)
    try:
        for _, fd, found in walk(root_fd):
            inodes += 1
            size += os.fstat(fd).st_blocks * 512
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                identity = (status.st_dev, status.st_ino)
                if status.st_nlink > 1 and identity in seen:
                    continue
                seen.add(identity)
                inodes += 1
                size += status.st_blocks * 512
    finally:
        os.close(root_fd)
    return Usage(inodes, size)


def delete(parent_fd: int, name: str | bytes) -> None:
    """Delete the directory `name` with all below it.

    It does not descend: directories two levels down are moved one level up, until none are left. Raises OSError at
    the first entry that cannot be deleted (EXDEV: something is mounted there); another call goes on with the rest.
    """
    fd = open_below(parent_fd, os.fsencode(name))
    try:
        while children := _delete_files(fd):
            for child in children:
                child_fd = open_below(fd, child)
                try:
                    for grandchild in _delete_files(child_fd):
                        os.rename(grandchild, os.urandom(16).hex(), src_dir_fd=child_fd, dst_dir_fd=fd)
                finally:
                    os.close(child_fd)
                os.rmdir(child, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)


def delete_path(path: str) -> None:
    """delete() of a directory by its path."""
    parent, name = os.path.split(path)
    parent_fd = os.open(parent, DIRECTORY)
    try:
        delete(parent_fd, name)
    finally:
        os.close(parent_fd)


def _delete_files(fd: int) -> list[bytes]:
    """Delete all that is not a directory. The names of the directories, which are left."""
    directories = []
    for entry in entries(fd):
        if entry.is_dir(follow_symlinks=False):
            directories.append(entry.name)
        else:
            os.unlink(entry.name, dir_fd=fd)
    return directories
