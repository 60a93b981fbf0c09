"""Deleting a tree that nobody sees: what is in a branch's work area."""

from __future__ import annotations

import os
import stat

from unionfs.linux import files

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _open_up(name: bytes, parent_fd: int) -> None:
    """Let the owner of a directory into it."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        if os.fstat(fd).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(files.fd_path(fd), 0o700)
    finally:
        os.close(fd)


def remove_tree(parent_fd: int, name: bytes) -> None:
    """Delete `name` and all below it, however deep, by descriptors, following no link.

    Raises FileNotFoundError when there is no such name.
    """
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent_fd)
        return
    path: list[tuple[bytes, int, list[bytes]]] = []

    def enter(directory: bytes, fd: int) -> None:
        if os.geteuid() != 0:
            _open_up(directory, fd)
        inside = os.open(directory, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        path.append((directory, inside, []))
        path[-1][2].extend(os.listdir(files.fd_path(inside)))

    try:
        enter(name, parent_fd)
        while path:
            directory, fd, children = path[-1]
            if not children:
                os.close(fd)
                path.pop()
                os.rmdir(directory, dir_fd=path[-1][1] if path else parent_fd)
                continue
            child = children.pop()
            if stat.S_ISDIR(os.stat(child, dir_fd=fd, follow_symlinks=False).st_mode):
                enter(child, fd)
            else:
                os.unlink(child, dir_fd=fd)
    finally:
        for _, fd, _ in path:
            os.close(fd)
