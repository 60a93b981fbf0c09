"""Inode numbers: the same over copy-up, over remounts, and for every name of a hard-linked file.

A file's identity is its *origin*: the branch file it was first seen as. On copy-up the origin is written into an
attribute of the copy, so the number outlives the mount. `numbers` says which it is.
"""

from __future__ import annotations

import os
from collections.abc import Container
from typing import NamedTuple

from unionfs.linux import consts, files, mounts
from unionfs.union import mark
from unionfs.union.branch import Branch
from unionfs.union.numbers import Numbering, Numbers, Xino

ROOT = 1
# File systems that number a file when it comes into memory, and others that we do not know to do better.
_NUMBERED_ANEW = frozenset({"vfat", "msdos", "exfat", "cifs", "smb3", "vboxsf", "overlay", "fuse", "fuseblk"})
# Given downwards, for an inode number is most seldom that large, while 32 bits hold them; and then upwards from where
# no file's number is.
_SPARE = 1 << 32
_MOST_SPARE = 1 << 28
_FRESH = 1 << 62
_DIGESTS = 1 << 63  # the first of them (numbers)
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

    __slots__ = ("_first", "_numbers", "_room", "branch", "copies", "device", "fsid", "lasting", "private", "root")

    def __init__(
        self, branch: Branch, device: int, numbers: Numbers, *, lasting: bool, copies: Container[int] | None
    ) -> None:
        self.branch = branch
        self.device = device
        self.fsid = numbers.fsid
        self.root = branch.root_inode
        self.private = branch.private
        self.lasting = lasting
        self.copies = copies
        self._numbers = numbers
        self._first = numbers.first
        self._room = numbers.room

    def number(self, inode: int) -> int:
        """The number of the file `inode`: `Numbers.of`, and where it is the inode's own, the same object."""
        if inode < self._room:
            return self._first | inode if self._first else inode
        return self._numbers.beyond(inode)

    def origin(self, inode: int) -> Origin:
        """The origin of a branch file that is not a copy."""
        return Origin(self.fsid, self.root, inode)


class Identity:
    """Maps branch files and origins to inode numbers; guarded by Stack.lock.

    `sources` has those of each branch, by device. It grows when a branch turns out to hold more file systems.

    `_copies` has, of each branch that copies are made in and of the top one, what `Source.copies` says: None, unless
    the branch was empty when it was mounted. Nobody but the union makes files in it meanwhile.
    """

    def __init__(self, branches: list[Branch], xino: Xino = "auto") -> None:
        self._fsids: dict[int, int] = {}
        self._spare = self._fresh = 0
        self._copies: dict[Branch, set[int] | None] = {
            branch: None for branch in branches if branch.writable or branch is branches[0]
        }
        self._origins: dict[tuple[Branch, int], Origin] = {}
        for branch in reversed(branches):
            if branch.device not in self._fsids:
                # Two that cannot be told apart are copies of one image.
                known = branch.fsid in self._fsids.values()
                self._fsids[branch.device] = branch.fsid ^ branch.device if known else branch.fsid
        self._numbering = Numbering([*self._fsids.values()], xino)
        self.sources: dict[Branch, dict[int, Source]] = {branch: {} for branch in branches}
        for branch in branches:
            self._add_source(branch, branch.device)

    def _add_source(self, branch: Branch, device: int) -> Source:
        numbers = self._numbering.of(self._fsids[device])
        lasting, copies = self._lasting(branch, device), self._copies.get(branch, _NO_COPIES)
        source = Source(branch, device, numbers, lasting=lasting, copies=copies)
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
        return self._numbering.of(origin.fsid).of(origin.inode)

    def lasts(self, number: int) -> bool:
        """Whether a file can have the number on another mount too; it may be nobody's."""
        return not _FRESH <= number < _DIGESTS

    def is_spare(self, number: int) -> bool:
        """Whether it was given instead of a number that was taken."""
        return _SPARE - self._spare <= number < _SPARE or not self.lasts(number)

    def spare_number(self) -> int:
        """A number that was not given before, for a file whose own is taken (a copy of a layer used beside the
        original, inode 1). Some file may have it as its own."""
        if self._spare == _MOST_SPARE:
            return self.fresh_number()
        self._spare += 1
        return _SPARE - self._spare

    def fresh_number(self) -> int:
        """A number that no file has, and that was not given before."""
        self._fresh += 1
        return _FRESH + self._fresh

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
