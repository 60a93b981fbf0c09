"""What a walk finds, and what is listed of it."""

from __future__ import annotations

import errno
import os
from typing import Literal, NamedTuple

from unionfs.linux.files import fd_path

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE, errno.EXDEV)


def is_gone(error: OSError) -> bool:
    """Whether an entry that was there is there no longer, or something else is in its place: a tree may be in use.
    EXDEV counts too: something is mounted there, which is not the tree's."""
    return error.errno in _GONE


class Change(NamedTuple):
    """One line of `docker diff`: A added, C changed, D deleted. `path` begins with a slash."""

    kind: Literal["A", "C", "D"]
    path: bytes


class Found(NamedTuple):
    """One entry of two trees compared. `path` is below the root, b"" the root itself.

    `kind` is a Change's, or "=" for an unchanged file that has other names: one of them may be new.
    `name` in the directory `fd` is the entry, and an empty name `fd` itself; both are valid until the next is asked
    for. A deleted one has neither, and no status. `over` says that the old tree has something of that name.
    """

    kind: Literal["A", "C", "D", "="]
    path: bytes
    fd: int
    name: bytes
    status: os.stat_result | None
    over: bool

    @property
    def place(self) -> tuple[bytes, bool]:
        """A path for calls that take no descriptor, and whether they must follow it: a descriptor's magic link is to
        be followed, an entry's name never."""
        return fd_path(self.fd, self.name), not self.name
