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

from unionfs.linux import files
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
    """Maps origins to inode numbers. `_fsids`, by device number, grows when a branch turns out to hold more file
    systems; guarded by Stack.lock."""

    def __init__(self, branches: list[Branch]) -> None:
        self._fsids: dict[int, int] = {}
        self._indexes: dict[int, int] = {}
        self._collisions = 0
        for branch in reversed(branches):
            if branch.device not in self._fsids:
                # Two that cannot be told apart are copies of one image.
                fsid = branch.fsid ^ branch.device if branch.fsid in self._indexes else branch.fsid
                self._fsids[branch.device] = fsid
                self._indexes[fsid] = len(self._indexes)

    def origin(self, branch: Branch, dirfd: int, name: bytes, entry: os.stat_result) -> Origin:
        """The origin of a branch file that is not a copy: `name` in `dirfd`, with the status `entry`."""
        fsid = self._fsids.get(entry.st_dev)
        if fsid is None:
            # A btrfs subvolume, or a file system mounted inside the branch.
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
            try:
                fsid = self._fsids[entry.st_dev] = files.file_system_id(fd)
            finally:
                os.close(fd)
        return Origin(fsid, branch.root_inode, entry.st_ino)

    def number(self, origin: Origin) -> int:
        """The same on every mount: of a branch's file system its place and the inode, of any other (one inside a
        branch, or that which a copy carried here was made on) a digest."""
        index = self._indexes.get(origin.fsid)
        if index is not None and origin.inode < 1 << _INDEX_SHIFT and index < 1 << 14:
            return index << _INDEX_SHIFT | origin.inode
        digest = hashlib.blake2b(b"%x.%x" % (origin.fsid, origin.inode), digest_size=8).digest()
        return int.from_bytes(digest, "little") | _HASHED

    def spare_number(self) -> int:
        """A number that no file has, and that was not given before: for a file whose own is taken (a copy of a layer
        used beside the original, inode 1), or for a node that gets another number."""
        self._collisions += 1
        return _COLLIDED + self._collisions
