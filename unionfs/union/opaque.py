"""Whether a directory of a branch is opaque: it hides what lies below it (the marks are in `form`)."""

from __future__ import annotations

import errno
import os

from unionfs.linux import files
from unionfs.union import form


def is_opaque(parent_fd: int, name: bytes) -> bool:
    """Whether the directory `name` in `parent_fd` is."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Not by a longer name: `name` may have become a link to anywhere.
        fd = os.open(name, flags, dir_fd=parent_fd)
    except FileNotFoundError:
        return False
    except PermissionError:  # it may be looked into, and not be listed
        fd = os.open(name, flags | os.O_PATH, dir_fd=parent_fd)
        file: int | bytes = files.fd_path(fd)
    else:
        file = fd  # no call has to find it anew
    try:
        if os.access(form.OPAQUE, os.F_OK, dir_fd=fd, follow_symlinks=False):
            return True
        marked = form.OPAQUE_ATTRIBUTES.intersection(os.listxattr(file))
        return any(_says_yes(file, attribute) for attribute in marked)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODATA, errno.ENOENT):
            return False
        raise
    finally:
        os.close(fd)


def _says_yes(file: int | bytes, attribute: str) -> bool:
    try:
        return os.getxattr(file, attribute) == b"y"
    except PermissionError:
        return True  # it is there, and nothing else is ever written into it
