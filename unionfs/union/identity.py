"""Inode numbers: the same over copy-up, over remounts, and for every name of a hard-linked file.

A file's identity is its *origin*: the branch file it was first seen as. On copy-up the origin is written into an
attribute of the copy, so the number outlives the mount. The number shown is the inode's own where all branches share a
file system; otherwise bits 48-61 tell the file systems apart, bottom first (overlayfs does the same with xino,
Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os
from typing import NamedTuple

from unionfs.linux import consts, files, mounts
from unionfs.union import mark
from unionfs.union.branch import Branch

ROOT = 1
_INDEX_SHIFT = 48
# File systems that number a file when it comes into memory, and others that we do not know to do better.
_NUMBERED_ANEW = frozenset({"vfat", "msdos", "exfat", "cifs", "smb3", "vboxsf", "overlay", "fuse", "fuseblk"})
_HASHED = 1 << 63
_SPARE = 1 << 62


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


# How a copy's record names what else is kept of its original (union/protection).
_LETTERS = {b"i": consts.FS_IMMUTABLE_FL, b"a": consts.FS_APPEND_FL}


def record(origin: Origin, protection: int) -> bytes:
    """What is written into an attribute of a copy."""
    letters = b"".join(letter for letter, flag in _LETTERS.items() if protection & flag)
    return origin.encode() + (b"." + letters if letters else b"")


def read_record(value: bytes) -> tuple[Origin | None, int]:
    """(origin, protection), as `record` has them."""
    *numbers, last = value.split(b".")
    if len(numbers) < 3:
        return Origin.decode(value), 0
    protection = sum(flag for letter, flag in _LETTERS.items() if letter in last)
    return Origin.decode(b".".join(numbers)), protection


class Source:
    """A file system as one branch shows it: what the identities of all its files have in common. Immutable, and one
    object for each (branch, device). `private` is the branch's (union/branch.py); `lasting`: a file keeps its inode
    number for as long as it is there."""

    __slots__ = ("_first", "branch", "device", "fsid", "lasting", "private", "root")

    def __init__(
        self, branch: int, device: int, fsid: int, root: int, index: int | None, *,
        private: bool = False, lasting: bool = True,
    ) -> None:  # fmt: skip
        self.branch = branch
        self.device = device
        self.fsid = fsid
        self.root = root
        self.private = private
        self.lasting = lasting
        self._first = index << _INDEX_SHIFT if index is not None and index < 1 << 14 else None

    def number(self, inode: int) -> int:
        """The number of the file `inode`, the same on every mount: of a branch's file system its place and the inode,
        of any other (one inside a branch) a digest."""
        if self._first is not None and inode < 1 << _INDEX_SHIFT:
            return self._first | inode if self._first else inode
        return _digest(self.fsid, inode)

    def origin(self, inode: int) -> Origin:
        """The origin of a branch file that is not a copy."""
        return Origin(self.fsid, self.root, inode)


class Identity:
    """Maps branch files and origins to inode numbers; guarded by Stack.lock.

    `sources` has those of each branch, by device. It grows when a branch turns out to hold more file systems.

    `_copies` has the inodes of the writable branch that can be copies, or is None if any can: the branch was not empty
    when it was mounted. Nobody but the union makes files in it meanwhile.
    """

    def __init__(self, branches: list[Branch]) -> None:
        self._branches = branches
        self._fsids: dict[int, int] = {}
        self._indexes: dict[int, int] = {}
        self._spare = 0
        self._copies: set[int] | None = None
        self._origins: dict[int, Origin] = {}
        for branch in reversed(branches):
            if branch.device not in self._fsids:
                # Two that cannot be told apart are copies of one image.
                fsid = branch.fsid ^ branch.device if branch.fsid in self._indexes else branch.fsid
                self._fsids[branch.device] = fsid
                self._indexes[fsid] = len(self._indexes)
        self.sources: list[dict[int, Source]] = [{} for _ in branches]
        for index, branch in enumerate(branches):
            self._add_source(index, branch.device)

    def _add_source(self, branch: int, device: int) -> Source:
        fsid = self._fsids[device]
        source = Source(
            branch, device, fsid, self._branches[branch].root_inode, self._indexes.get(fsid),
            private=self._branches[branch].private, lasting=self._lasting(branch, device),
        )  # fmt: skip
        self.sources[branch][device] = source
        return source

    def _lasting(self, branch: int, device: int) -> bool:
        for of_branch in self.sources:
            if device in of_branch:
                return of_branch[device].lasting
        # An overlay has devices of its own for files, which no mount shows.
        kind = mounts.file_system_of(device) or mounts.file_system_of(self._branches[branch].device) or ""
        if kind.startswith("fuse."):
            point = mounts.mount_showing(device)
            return point is not None and mark.of(point) is not None
        return kind not in _NUMBERED_ANEW

    def source(self, branch: int, dirfd: int, name: bytes, entry: os.stat_result) -> Source:
        """Of the branch file `name` in `dirfd`, with the status `entry`."""
        return self.sources[branch].get(entry.st_dev) or self.new_source(branch, dirfd, name, entry)

    def new_source(self, branch: int, dirfd: int, name: bytes, entry: os.stat_result) -> Source:
        """The same for the first file of its device."""
        if entry.st_dev not in self._fsids:
            # A btrfs subvolume, or a file system mounted inside the branch.
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
            try:
                self._fsids[entry.st_dev] = files.file_system_id(fd)
            finally:
                os.close(fd)
        return self._add_source(branch, entry.st_dev)

    def writable_source(self, device: int) -> Source:
        """Of a file in the writable branch's work area."""
        source = self.sources[0].get(device)
        if source is None:
            self._fsids.setdefault(device, self._branches[0].fsid)
            source = self._add_source(0, device)
        return source

    def number(self, origin: Origin) -> int:
        """Of a copy, from its recorded origin; what `Source.number` says of the original."""
        index = self._indexes.get(origin.fsid)
        return Source(0, 0, origin.fsid, origin.root, index).number(origin.inode)

    def spare_number(self) -> int:
        """A number that no file has, and that was not given before: for a file whose own is taken (a copy of a layer
        used beside the original, inode 1), or for a node that gets another number."""
        self._spare += 1
        return _SPARE + self._spare

    # Which files of the writable branch can be copies, so that they have to be asked for their origin.

    def know_copies(self) -> None:
        """The writable branch is empty, and all its copies will be told to `copied`."""
        self._copies = set()

    def copied(self, inode: int) -> None:
        if self._copies is not None:
            self._copies.add(inode)

    # The origins of copies whose attribute may not be readable, by inode number.

    def remember(self, inode: int, origin: Origin) -> None:
        self._origins[inode] = origin

    def remembered(self, branch: int, inode: int) -> Origin | None:
        return self._origins.get(inode) if branch == 0 else None

    def forget(self, inode: int) -> None:
        """The number is a new file's or nobody's, or the attribute can be read."""
        self._origins.pop(inode, None)

    @property
    def all_may_be_copies(self) -> bool:
        return self._copies is None

    def may_be_copy(self, inode: int) -> bool:
        return self._copies is None or inode in self._copies


def _digest(fsid: int, inode: int) -> int:
    import hashlib  # it loads OpenSSL: 5 ms that every mount would pay

    digest = hashlib.blake2b(b"%x.%x" % (fsid, inode), digest_size=8).digest()
    return int.from_bytes(digest, "little") | _HASHED
