"""Inode numbers: the same over copy-up, over remounts, and for every name of a hard-linked file.

A file's identity is its *origin*: the branch file it was first seen as. On copy-up the origin is written into an
attribute of the copy, so the number outlives the mount. The number shown is the inode's own where all branches share a
file system; otherwise bits 48-61 tell the file systems apart, bottom first (overlayfs does the same with xino,
Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from unionfs.union.branch import Branch

ROOT = 1
_INDEX_SHIFT = 48
_HASHED = 1 << 63
_COLLIDED = 1 << 62


class Origin(NamedTuple):
    """File system id, inode number of the branch's root directory, and of the file. Layers made with `cp -al` share
    inodes; the root tells them apart, so that they stay separate files."""

    fsid: int
    root: int
    inode: int

    def encode(self) -> bytes:
        return b"%x.%x.%x" % self

    @classmethod
    def decode(cls, value: bytes) -> Origin | None:
        try:
            fsid, root, inode = value.split(b".")
            return cls(int(fsid, 16), int(root, 16), int(inode, 16))
        except ValueError:
            return None


class Identity:
    """Maps origins to inode numbers. The tables are filled at mount and grow when a branch holds a mount of another
    file system; guarded by Stack.lock."""

    def __init__(self, branches: list[Branch]) -> None:
        self._fsids: dict[int, int] = {}
        self._indexes: dict[int, int] = {}
        self._collisions = 0
        for branch in reversed(branches):
            if branch.device not in self._fsids:
                # No id (tmpfs before Linux 6.6), or one shared by two devices: the device number has to do.
                shared = branch.fsid == 0 or branch.fsid in self._fsids.values()
                self._fsids[branch.device] = branch.device if shared else branch.fsid
            self._indexes.setdefault(self._fsids[branch.device], len(self._indexes))

    def origin(self, branch: Branch, entry: os.stat_result) -> Origin:
        """The origin of a branch file that is not a copy."""
        # A file system mounted inside a branch: its device number serves, the mount is not ours to describe.
        return Origin(self._fsids.get(entry.st_dev, entry.st_dev), branch.root_inode, entry.st_ino)

    def knows(self, origin: Origin) -> bool:
        """Whether the origin lies on a file system of this stack; a copy carried elsewhere has lost its meaning."""
        return origin.fsid in self._indexes

    def number(self, origin: Origin) -> int:
        index = self._indexes.setdefault(origin.fsid, len(self._indexes))
        if origin.inode < 1 << _INDEX_SHIFT and index < 1 << 14:
            return index << _INDEX_SHIFT | origin.inode
        digest = hashlib.blake2b(b"%x.%x" % (origin.fsid, origin.inode), digest_size=8).digest()
        return int.from_bytes(digest, "little") | _HASHED

    def spare_number(self) -> int:
        """A number for a file whose own is taken: a copy of a layer used beside the original, inode 1."""
        self._collisions += 1
        return _COLLIDED + self._collisions
