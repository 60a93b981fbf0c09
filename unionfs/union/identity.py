"""Inode numbers: the same over copy-up, over remounts, and for every name of a hard-linked file.

A file's identity is its *origin*: the branch file it was first seen as. On copy-up the origin is written into an
attribute of the copy, so the number outlives the mount. The number shown is the inode's own where all branches share a
file system; otherwise bits 48-61 tell the file systems apart, bottom first (overlayfs does the same with xino,
Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os
from collections.abc import Container
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
_NO_COPIES: frozenset[int] = frozenset()


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
    number for as long as it is there; `copies`: the inodes that can be copies, and have to be asked for their origin,
    or None if any can."""

    __slots__ = ("_first", "branch", "copies", "device", "fsid", "lasting", "private", "root")

    def __init__(
        self, branch: Branch, device: int, fsid: int, index: int | None, *, lasting: bool, copies: Container[int] | None
    ) -> None:
        self.branch = branch
        self.device = device
        self.fsid = fsid
        self.root = branch.root_inode
        self.private = branch.private
        self.lasting = lasting
        self.copies = copies
        self._first = _first(index)

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

    `_copies` has, of each branch that copies are made in and of the top one, what `Source.copies` says: None, unless
    the branch was empty when it was mounted. Nobody but the union makes files in it meanwhile.
    """

    def __init__(self, branches: list[Branch]) -> None:
        self._branches = branches
        self._fsids: dict[int, int] = {}
        self._indexes: dict[int, int] = {}
        self._spare = 0
        self._copies: dict[Branch, set[int] | None] = {
            branch: None for branch in branches if branch.writable or branch is branches[0]
        }
        self._origins: dict[tuple[Branch, int], Origin] = {}
        for branch in reversed(branches):
            if branch.device not in self._fsids:
                # Two that cannot be told apart are copies of one image.
                fsid = branch.fsid ^ branch.device if branch.fsid in self._indexes else branch.fsid
                self._fsids[branch.device] = fsid
                self._indexes[fsid] = len(self._indexes)
        self.sources: dict[Branch, dict[int, Source]] = {branch: {} for branch in branches}
        for branch in branches:
            self._add_source(branch, branch.device)

    def _add_source(self, branch: Branch, device: int) -> Source:
        fsid = self._fsids[device]
        lasting, copies = self._lasting(branch, device), self._copies.get(branch, _NO_COPIES)
        source = Source(branch, device, fsid, self._indexes.get(fsid), lasting=lasting, copies=copies)
        self.sources[branch][device] = source
        return source

    def _lasting(self, branch: Branch, device: int) -> bool:
        for of_branch in self.sources.values():
            if device in of_branch:
                return of_branch[device].lasting
        # An overlay has devices of its own for files, which no mount shows.
        kind = mounts.file_system_of(device) or mounts.file_system_of(branch.device) or ""
        if kind.startswith("fuse."):
            point = mounts.mount_showing(device)
            return point is not None and mark.of(point) is not None
        return kind not in _NUMBERED_ANEW

    def source(self, branch: Branch, dirfd: int, name: bytes, entry: os.stat_result) -> Source:
        """Of the branch file `name` in `dirfd`, with the status `entry`."""
        return self.sources[branch].get(entry.st_dev) or self.new_source(branch, dirfd, name, entry)

    def new_source(self, branch: Branch, dirfd: int, name: bytes, entry: os.stat_result) -> Source:
        """The same for the first file of its device."""
        if entry.st_dev not in self._fsids:
            # A btrfs subvolume, or a file system mounted inside the branch.
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
            try:
                self._fsids[entry.st_dev] = files.file_system_id(fd)
            finally:
                os.close(fd)
        return self._add_source(branch, entry.st_dev)

    def work_source(self, branch: Branch, device: int) -> Source:
        """Of a file in the work area of a writable branch."""
        source = self.sources[branch].get(device)
        if source is None:
            self._fsids.setdefault(device, branch.fsid)
            source = self._add_source(branch, device)
        return source

    def number(self, origin: Origin) -> int:
        """Of a copy, from its recorded origin; what `Source.number` says of the original."""
        return _number(_first(self._indexes.get(origin.fsid)), origin.fsid, origin.inode)

    def lasts(self, number: int) -> bool:
        """Whether a file that is in a branch, or was, can have the number on another mount too."""
        return bool(number & _HASHED) or number >> _INDEX_SHIFT < len(self._indexes)

    def spare_number(self) -> int:
        """A number that no file has, and that was not given before: for a file whose own is taken (a copy of a layer
        used beside the original, inode 1), or for a node that gets another number."""
        self._spare += 1
        return _SPARE + self._spare

    # Which files of a branch can be copies, so that they have to be asked for their origin.

    def know_copies(self, branch: Branch) -> None:
        """The writable branch is empty, and all its copies will be told to `copied`."""
        self._copies[branch] = copies = set[int]()
        for source in self.sources[branch].values():
            source.copies = copies

    def copied(self, branch: Branch, inode: int) -> None:
        copies = self._copies[branch]
        if copies is not None:
            copies.add(inode)

    def may_hold_copies(self, branch: Branch) -> bool:
        return branch in self._copies

    def all_may_be_copies(self, branch: Branch) -> bool:
        """Whether any file of a branch that may hold copies can be one."""
        return self._copies[branch] is None

    # The origins of copies whose attribute may not be readable, by branch and inode number.

    def remember(self, branch: Branch, inode: int, origin: Origin) -> None:
        self._origins[branch, inode] = origin

    def remembered(self, branch: Branch, inode: int) -> Origin | None:
        return self._origins.get((branch, inode))

    def forget(self, branch: Branch, inode: int) -> None:
        """The number is a new file's or nobody's, or the attribute can be read."""
        if self._origins:
            self._origins.pop((branch, inode), None)


def is_spare(number: int) -> bool:
    return number & (_HASHED | _SPARE) == _SPARE


def _first(index: int | None) -> int | None:
    """The first number of the file system at this place among those that branches are on; None if its numbers are
    digests."""
    return index << _INDEX_SHIFT if index is not None and index < 1 << 14 else None


def _number(first: int | None, fsid: int, inode: int) -> int:
    return first | inode if first is not None and inode < 1 << _INDEX_SHIFT else _digest(fsid, inode)


def _digest(fsid: int, inode: int) -> int:
    import hashlib  # it loads OpenSSL: 5 ms that every mount would pay

    digest = hashlib.blake2b(b"%x.%x" % (fsid, inode), digest_size=8).digest()
    return int.from_bytes(digest, "little") | _HASHED
