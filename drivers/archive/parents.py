"""The tree that directories of differences, one on another, add up to, looked at name by name: nothing is mounted.

They are committed, so nobody changes them. Every name is opened as in `walk`, confined to one directory.
"""

from __future__ import annotations

import errno
import itertools
import operator
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from drivers.api import Form
from drivers.archive import marks
from drivers.archive.limits import Spent
from drivers.archive.policy import Path
from drivers.archive.walk import joined
from drivers.disk.trees import walk
from unionfs.linux import consts, files
from unionfs.union.form import is_overlay_whiteout, is_reserved

_BENEATH = consts.RESOLVE_BENEATH | consts.RESOLVE_NO_SYMLINKS | consts.RESOLVE_NO_XDEV
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Found(NamedTuple):
    """What the parents have under a name: which parent it is in, and the status there. Inode numbers are per parent."""

    parent: int
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


class _Place:
    """A directory, which knows the one that it is in: a path would repeat all of them."""

    __slots__ = ("_above", "_name")

    def __init__(self, above: _Place | None, name: bytes) -> None:
        self._above = above
        self._name = name

    def path(self) -> Path:
        names = []
        place = self
        while place._above is not None:
            names.append(place._name)
            place = place._above
        return tuple(reversed(names))


class Parents:
    """The merged tree of directories of differences, looked at name by name. Raises Refused after too many looks."""

    def __init__(self, fds: Sequence[int], form: Form, spent: Spent) -> None:
        self._fds = fds
        self._form = form
        self._spent = spent
        # The directories on the way that was asked for last, and which parents each is merged of: archives come in
        # order. The first is the root.
        self._names: list[bytes] = []
        self._merged: list[list[int]] = [self._upper_most(list(range(len(fds))), ())]
        self._linked: dict[int, dict[int, list[tuple[_Place, bytes]]]] = {}

    def find(self, path: Path) -> Found | None:
        """What has this canonical path, of which at most the last name is a symbolic link's."""
        if not path:
            return Found(0, os.fstat(self._fds[0])) if self._fds else None
        for parent in self._merge(path[:-1]):
            if (status := self._status(parent, path)) is not None:
                return None if is_overlay_whiteout(status) else Found(parent, status)
            if self._hides(parent, path):
                return None
        return None

    def open(self, parent: int, path: Path, flags: int) -> int:
        self._spent.look(len(path))
        return files.openat2(self._fds[parent], joined(path), flags, resolve=_BENEATH)

    def readlink(self, parent: int, path: Path) -> bytes:
        fd = self.open(parent, path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)

    def names(self) -> list[bytes]:
        """Those that the root directory shows, sorted."""
        found: set[bytes] = set()
        for parent in self._merged[0]:
            fd = self.open(parent, (), os.O_RDONLY | os.O_DIRECTORY)
            try:
                found.update(map(os.fsencode, os.listdir(fd)))
            finally:
                os.close(fd)
        return [name for name in sorted(found) if not self._is_reserved(name) and self.find((name,)) is not None]

    def other_names(self, path: Path, found: Found) -> Iterator[tuple[Path, list[bytes]]]:
        """The names besides `path` under which the file `found` is seen, directory by directory."""
        if found.parent not in self._linked:
            self._linked[found.parent] = self._links(found.parent)
        names = self._linked[found.parent].get(found.status.st_ino, [])
        for place, group in itertools.groupby(names, key=operator.itemgetter(0)):
            directory = place.path()
            own = path[-1] if directory == path[:-1] else None
            if shown := self._shown(directory, [name for _, name in group if name != own], found.parent):
                yield directory, shown

    def _shown(self, directory: Path, names: list[bytes], parent: int) -> list[bytes]:
        """Those of the names in a directory of `parent` that the ones above it let through."""
        merged = self._merge(directory)
        if parent not in merged:
            return []
        for nearer in merged[: merged.index(parent)]:
            fd = self.open(nearer, directory, _DIRECTORY)
            try:
                names = [name for name in names if not marks.covers(fd, name, self._form)]
            finally:
                os.close(fd)
        return names

    def _links(self, parent: int) -> dict[int, list[tuple[_Place, bytes]]]:
        """The names in one parent of the files with several, by inode number."""
        linked: dict[int, list[tuple[_Place, bytes]]] = {}
        way: list[_Place] = []  # the last directory walked one level up is the one that a directory is in
        for directory, fd, found in walk(self._fds[parent]):
            depth = directory.count(b"/") + 1 if directory else 0
            del way[depth:]
            place = _Place(way[-1] if way else None, directory.rpartition(b"/")[2])
            way.append(place)
            for entry in found:
                if not entry.is_dir(follow_symlinks=False) and not self._is_reserved(entry.name):
                    status = os.stat(entry.name, dir_fd=fd, follow_symlinks=False)  # the entry's own would be kept
                    if status.st_nlink > 1:
                        linked.setdefault(status.st_ino, []).append((place, entry.name))
        return linked

    def _is_reserved(self, name: bytes) -> bool:
        return self._form == "aufs" and is_reserved(name)

    def _merge(self, path: Path) -> list[int]:
        """The parents that a directory is merged of, nearest first; none if it is not a directory there."""
        self._spent.look(len(path))
        same = 0
        while same < min(len(path), len(self._names)) and path[same] == self._names[same]:
            same += 1
        del self._names[same:], self._merged[same + 1 :]
        for length in range(same + 1, len(path) + 1):
            self._merged.append(self._upper_most(self._merged[-1], path[:length]))
            self._names.append(path[length - 1])
        return self._merged[-1]

    def _upper_most(self, parents: list[int], path: Path) -> list[int]:
        """Of the parents that the directory above is merged of, those that the directory `path` is merged of."""
        merged: list[int] = []
        for parent in parents:
            if (status := self._status(parent, path)) is not None:
                if not stat.S_ISDIR(status.st_mode):
                    break
                merged.append(parent)
                if self._is_opaque(parent, path):
                    break
            if path and self._hides(parent, path):
                break
        return merged

    def _status(self, parent: int, path: Path) -> os.stat_result | None:
        try:
            fd = self.open(parent, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in _MISSING:
                return None
            raise
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _is_opaque(self, parent: int, path: Path) -> bool:
        if not path and self._form != "aufs":
            return False  # overlayfs merges the roots of its layers, whatever they say
        fd = self.open(parent, path, _DIRECTORY)
        try:
            return marks.is_opaque(fd, self._form)
        finally:
            os.close(fd)

    def _hides(self, parent: int, path: Path) -> bool:
        """Whether there is a whiteout of that name; in AUFS form that is not the entry itself."""
        if self._form != "aufs":
            return False
        try:
            fd = self.open(parent, path[:-1], _DIRECTORY)
        except OSError as error:
            if error.errno in _MISSING:
                return False
            raise
        try:
            return marks.hides(fd, path[-1], self._form)
        finally:
            os.close(fd)
