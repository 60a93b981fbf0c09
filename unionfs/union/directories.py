"""Branch directories: an open descriptor for as many as the budget allows, and for those that are asked for what they
do not have, the set of names in it.

The union owns its branches while mounted, so a name set stays true as long as our own changes are told to it, and a
missing name then costs no system call in any branch. A set costs about 0.2 us a name to make and 100 bytes a name to
keep, a question by system call about 1 us: so one is made only of what is small for the number of names already
missed. Guarded by Stack.lock.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from unionfs.linux import consts, files
from unionfs.union import form
from unionfs.union.branch import Branch
from unionfs.union.errors import fail
from unionfs.union.nodes import Node

_RESOLVE = consts.RESOLVE_BENEATH | consts.RESOLVE_NO_SYMLINKS | consts.RESOLVE_NO_MAGICLINKS


# A set of up to so many names is worth making for each name missed before; never of more than _LARGEST_SET.
_NAMES_A_MISS = 16
_LARGEST_SET = 1 << 16


class _Kept:
    """How many names are in the sets of one DirectoryCache."""

    __slots__ = ("names",)

    def __init__(self) -> None:
        self.names = 0


class BranchDirectory:
    """One directory of one branch. `fd` is O_RDONLY|O_DIRECTORY, or O_PATH where the server may not read it."""

    __slots__ = ("_kept", "_missed", "_names", "_whiteouts", "branch", "fd")

    def __init__(self, branch: Branch, fd: int, kept: _Kept) -> None:
        self.branch = branch
        self.fd = fd
        self._kept = kept
        self._names: set[bytes] | None = None
        self._whiteouts = False
        self._missed = 0

    def stat(self, name: bytes) -> os.stat_result | None:
        """The status of an entry, not followed; None if there is none."""
        names = self._names
        if names is not None and name not in names:
            return None
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            # Another branch's file system may allow longer names.
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                raise
            self._miss()
            return None

    def __contains__(self, name: bytes) -> bool:
        # Not by access(2), which Python has say False where it should say EIO.
        return name in self._names if self._names is not None else self.stat(name) is not None

    def hides(self, name: bytes) -> bool:
        """Whether there is a whiteout of `name`."""
        if self._names is not None and not self._whiteouts:
            return False
        return form.whiteout_of(name) in self

    def lacks(self, name: bytes) -> bool:
        """Whether it is known, without asking anybody, that there is neither `name` nor a whiteout of it."""
        names = self._names
        return names is not None and name not in names and not (self._whiteouts and form.whiteout_of(name) in names)

    def _miss(self) -> None:
        """Make the set when it is time: after 4 names missed, 8, 16 and so on, as long as it was too large before.
        To read a small directory costs as much as to miss four."""
        self._missed += 1
        missed = self._missed
        if self._names is None and missed >= 4 and not missed & missed - 1:
            most = missed * _NAMES_A_MISS
            if most <= _LARGEST_SET:
                with suppress(PermissionError):  # it may be searched and not be read
                    names = set(islice(self.scan(), most))
                    if len(names) < most:
                        self._keep(names)

    def _keep(self, names: set[bytes]) -> None:
        self._names = names
        self._whiteouts = any(map(form.is_reserved, names))
        self._kept.names += len(names)

    def drop_names(self) -> None:
        if self._names is not None:
            self._kept.names -= len(self._names)
            self._names = None

    def scan(self) -> Iterator[bytes]:
        """Every name, whiteouts and markers included, not `.` and `..`, without keeping them in memory."""
        with os.scandir(files.fd_path(self.fd)) as entries:
            for entry in entries:
                yield entry.name

    @property
    def names(self) -> set[bytes]:
        """Every name in the directory, whiteouts and markers included; not `.` and `..`."""
        if self._names is not None:
            return self._names
        names = set(os.listdir(files.fd_path(self.fd)))
        if len(names) <= _LARGEST_SET:
            self._keep(names)
        return names

    def is_bare(self) -> bool:
        """Whether there is nothing but the union's own names in it."""
        return all(map(form.is_reserved, self.scan()))

    def add(self, name: bytes) -> None:
        if self._names is not None and name not in self._names:
            self._names.add(name)
            self._kept.names += 1
            self._whiteouts = self._whiteouts or form.is_reserved(name)
            if len(self._names) > _LARGEST_SET:
                self.drop_names()
                self._missed = _LARGEST_SET

    def discard(self, name: bytes) -> None:
        if self._names is not None and name in self._names:
            self._names.discard(name)
            self._kept.names -= 1

    def close(self) -> None:
        self.drop_names()
        os.close(self.fd)


class DirectoryCache:
    """Branch directories by (directory node, branch), least recently used first.

    A BranchDirectory is good until the operation ends, lets go of the lock, or trims the cache between its steps.
    """

    def __init__(self, branches: list[Branch], *, most_directories: int, most_names: int) -> None:
        self._kept = _Kept()
        self._roots = {branch: BranchDirectory(branch, branch.fd, self._kept) for branch in branches}
        self._cached: OrderedDict[tuple[int, Branch], BranchDirectory] = OrderedDict()
        self._most_directories = most_directories
        self._most_names = most_names

    def root(self, branch: Branch) -> BranchDirectory:
        return self._roots[branch]

    def get(self, node: Node, branch: Branch) -> BranchDirectory:
        """The directory of `node` in `branch`. ESTALE if it has gone (someone changed the branch), ENOENT if `node` was
        removed."""
        if node.parent is None:
            if not node.layers:
                fail(errno.ENOENT)
            return self._roots[branch]
        key = (node.ino, branch)
        cached = self._cached
        if key in cached:
            cached.move_to_end(key)
            return cached[key]
        return self._open(node, branch)

    def _open(self, node: Node, branch: Branch) -> BranchDirectory:
        # Up to the nearest cached ancestor in a loop: a path may be deeper than Python's stack.
        steps: list[Node] = []
        ancestor = node
        while ancestor.parent is not None and (ancestor.ino, branch) not in self._cached:
            steps.append(ancestor)
            ancestor = ancestor.parent
        start = self.get(ancestor, branch)
        names = [step.name for step in reversed(steps)]
        path = b"/".join(names)
        try:
            try:
                fd = open_path(start.fd, names)
            except PermissionError:
                fd = _open_long(start.fd, names, os.O_PATH)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                fail(errno.ESTALE, path)  # someone changed the branch
            raise
        try:
            if node.layers[:1] == (branch,) and not node.is_(os.fstat(fd)):
                fail(errno.ESTALE, path)
        except BaseException:
            os.close(fd)
            raise
        directory = BranchDirectory(branch, fd, self._kept)
        self._cached[(node.ino, branch)] = directory
        return directory

    def trim(self) -> None:
        """Close the least recently used until the budget holds."""
        while len(self._cached) > self._most_directories or (self._kept.names > self._most_names and self._cached):
            self._cached.popitem(last=False)[1].close()

    def forget(self, node: Node) -> None:
        """Close what is cached of a directory that leaves the node table or was removed."""
        if not node.is_directory:
            return
        for branch in self._roots:
            directory = self._cached.pop((node.ino, branch), None)
            if directory is not None:
                directory.close()

    def clear(self) -> bool:
        """Close all that are cached; False if there were none. Between operations only."""
        any_cached = bool(self._cached)
        while self._cached:
            self._cached.popitem()[1].close()
        return any_cached


def open_path(start: int, names: list[bytes]) -> int:
    """Open the directory that `names` lead to from `start`, by way of directories alone and however deep, to be read.
    """
    if len(names) == 1:  # a name alone leads nowhere else, and this call is the quicker by 3 us
        return os.open(names[0], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=start)
    path = b"/".join(names)
    if len(path) < 4000:
        return files.openat2(start, path, os.O_RDONLY | os.O_DIRECTORY, resolve=_RESOLVE)
    return _open_long(start, names)


def _open_long(start: int, names: list[bytes], flags: int = os.O_RDONLY) -> int:
    """Open a directory whose path from `start` may be longer than PATH_MAX, a piece at a time."""
    fd = os.dup(start)
    for name in names:
        try:
            deeper = files.openat2(fd, name, flags | os.O_DIRECTORY, resolve=_RESOLVE)
        finally:
            os.close(fd)
        fd = deeper
    return fd
