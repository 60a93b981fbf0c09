"""Extraction into a directory of differences: what the tree has is the parents' as well, and nothing is mounted.

    own       the directory that is written to; what it lacks shines through from the parents, nearest first,
    parents   which are only read: committed, so nobody changes them

What a union would do on the way to the same tree is done here: a directory that comes from a parent is copied before
something is made in it, so is the file that a hard link leads to, and what is removed is hidden by a mark of the form
(drivers.marks). Every name is opened as in `walk`, confined to one directory, and links are followed in the whole tree.

containerd extracts into the layers of overlay and aufs likewise (core/diff/apply/apply_linux.go).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

from drivers import marks
from drivers.archive.limits import Limits
from drivers.archive.policy import ACLS, Path
from drivers.archive.walk import Link, Root, canonical, joined
from drivers.copytree import Copier, copy_attributes
from drivers.trees import walk
from unionfs.linux import consts, files
from unionfs.union import whiteout

_BENEATH = consts.RESOLVE_BENEATH | consts.RESOLVE_NO_SYMLINKS | consts.RESOLVE_NO_XDEV
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_PATH_MAX = 4095  # without its NUL
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Onto(NamedTuple):
    """Descriptors of a directory of differences and of those below it, nearest first; `form` is drivers.marks'."""

    own: int
    parents: Sequence[int]
    form: str


class Found(NamedTuple):
    """What the parents have of a name: which of them, and the status there. Inodes of one are told from another's."""

    parent: int
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


class _Own(NamedTuple):
    """How many names of a path lead through own directories; what is there then, None for nothing; and whether the
    next name, or the whole path, is hidden in the parents."""

    length: int
    status: os.stat_result | None
    hidden: bool


class Parents:
    """The merged tree of directories of differences, as it is looked at name by name."""

    def __init__(self, fds: Sequence[int], form: str) -> None:
        self._fds = fds
        self._form = form
        # The directories on the way that was asked for last, and which parents each is merged of: archives come in
        # order. The first is the root.
        self._names: list[bytes] = []
        self._merged: list[list[int]] = [self._upper_most(list(range(len(fds))), ())]
        self._linked: dict[int, dict[int, list[Path]]] = {}

    def find(self, path: Path) -> Found | None:
        """What has this canonical name, none of which is a link's but perhaps the last."""
        if not path:
            return Found(0, os.fstat(self._fds[0])) if self._fds else None
        for parent in self._merge(path[:-1]):
            if (status := self._status(parent, path)) is not None:
                return None if whiteout.is_overlay_whiteout(status) else Found(parent, status)
            if self._hides(parent, path):
                return None
        return None

    def open(self, parent: int, path: Path, flags: int) -> int:
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

    def other_names(self, path: Path, found: Found) -> list[Path]:
        """The names besides `path` that the file `found` shows."""
        if found.parent not in self._linked:
            self._linked[found.parent] = self._links(found.parent)
        names = self._linked[found.parent].get(found.status.st_ino, [])
        return [name for name in names if name != path and self._is(name, found)]

    def _is(self, path: Path, found: Found) -> bool:
        there = self.find(path)
        return there is not None and (there.parent, there.status.st_ino) == (found.parent, found.status.st_ino)

    def _links(self, parent: int) -> dict[int, list[Path]]:
        """The names in one parent of the files with several, by inode number."""
        linked: dict[int, list[Path]] = {}
        for directory, _, found in walk(self._fds[parent]):
            where = tuple(directory.split(b"/")) if directory else ()
            for entry in found:
                if not entry.is_dir(follow_symlinks=False) and not self._is_reserved(entry.name):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink > 1:
                        linked.setdefault(status.st_ino, []).append((*where, entry.name))
        return linked

    def _is_reserved(self, name: bytes) -> bool:
        return self._form == marks.AUFS and whiteout.is_reserved(name)

    def _merge(self, path: Path) -> list[int]:
        """The parents that a directory is merged of, nearest first; none if it is no directory there."""
        same = 0
        while same < min(len(path), len(self._names)) and path[same] == self._names[same]:
            same += 1
        del self._names[same:], self._merged[same + 1 :]
        for length in range(same + 1, len(path) + 1):
            self._merged.append(self._upper_most(self._merged[-1], path[:length]))
            self._names.append(path[length - 1])
        return self._merged[-1]

    def _upper_most(self, parents: list[int], path: Path) -> list[int]:
        """Of the parents that have the directory above it merged, those of the directory `path`."""
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
        if not path and self._form != marks.AUFS:
            return False  # overlayfs merges the roots of its layers, whatever they say
        fd = self.open(parent, path, _DIRECTORY)
        try:
            return marks.is_opaque(fd, self._form)
        finally:
            os.close(fd)

    def _hides(self, parent: int, path: Path) -> bool:
        """Whether there is a whiteout of that name, which is no entry itself."""
        if self._form != marks.AUFS:
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


class LayeredRoot(Root):
    """A Root whose directory is one of differences; see there for the methods."""

    def __init__(self, onto: Onto, limits: Limits) -> None:
        super().__init__(onto.own, limits)
        self._form = onto.form
        self._parents = Parents(onto.parents, onto.form)
        self._copier = Copier()
        # Whether there may be a mark. A layer is empty when it is begun, and few archives remove anything.
        self._is_marked = bool(os.listdir(onto.own))

    def make_directory(self, where: Path) -> bool:
        own = self._own(where)
        if own.length == len(where):
            return False
        below = self._parents.find(where)
        if below is not None and below.is_directory and own.status is None and not own.hidden:
            self._copy_directory(where, below)
            return False
        self.make_room(where)
        super().make_directory(where)
        if below is not None:
            self._make_opaque(where)
        return True

    def brought(self, where: Path) -> None:
        self._reveal(where)
        super().brought(where)

    def make_room(self, path: Path) -> None:
        super().make_room(path)
        self._reveal(path)

    def remove_older(self, path: Path) -> None:
        kept = self.made.find(path)
        if isinstance(kept, bytes):
            return  # it is this archive's, and in the place of what was there
        super().remove_older(path)
        if kept is None:
            if self._below(path) is not None:
                self._hide(path)
        elif path:
            if self._parents.find(path) is not None:
                self._make_opaque(path)
        else:  # name by name: overlayfs knows no opaque root
            for name in self._parents.names():
                self.remove_older((name,))

    def find(self, path: Path) -> int:
        where = (*canonical(path[:-1], self._first_link), *path[-1:])
        below = self._below(where)
        if below is not None and below.is_directory:
            return self._parents.open(below.parent, where, _DIRECTORY)
        if below is not None:
            self._copy_file(where, below)
        elif self._own(where).status is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.open(where, os.O_PATH | os.O_NOFOLLOW)

    # Where a name is.

    def _own(self, path: Path) -> _Own:
        """ENAMETOOLONG as the kernel says it of a whole path: nothing is made that has none."""
        if len(joined(path)) > _PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        fd = self.open((), _DIRECTORY)
        hidden = False
        try:
            for length, name in enumerate(path):
                hidden = hidden or (self._is_marked and marks.is_opaque(fd, self._form))
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    return _Own(length, None, hidden or (self._is_marked and marks.hides(fd, name, self._form)))
                if whiteout.is_overlay_whiteout(status):
                    return _Own(length, None, True)
                if not stat.S_ISDIR(status.st_mode):
                    return _Own(length, status, True)
                below = os.open(name, _DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = below
            return _Own(len(path), os.fstat(fd), hidden)
        finally:
            os.close(fd)

    def _below(self, path: Path) -> Found | None:
        """What shines through of the parents."""
        own = self._own(path)
        return None if own.status is not None or own.hidden else self._parents.find(path)

    def _first_link(self, path: Path) -> Link | None:
        own = self._own(path)
        if own.status is not None and not stat.S_ISDIR(own.status.st_mode):
            length = own.length + 1
            target = self._readlink(path[:length])
            return None if target is None else (length, target)
        if own.hidden:
            return None
        for length in range(own.length + 1, len(path) + 1):
            below = self._parents.find(path[:length])
            if below is None:
                return None
            if stat.S_ISLNK(below.status.st_mode):
                return length, self._parents.readlink(below.parent, path[:length])
        return None

    # What comes from the parents, and what no longer does.

    def _make(self, path: Path) -> None:
        own = self._own(path)
        if own.status is not None and not stat.S_ISDIR(own.status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        hidden = own.hidden
        for length in range(own.length + 1, len(path) + 1):
            where = path[:length]
            below = self._parents.find(where)
            if below is None or hidden:
                self._make_missing(where, opaque=below is not None)
                hidden = True
            elif below.is_directory:
                self._copy_directory(where, below)
            else:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _make_missing(self, where: Path, *, opaque: bool) -> None:
        if self._is_marked:
            self.make_room(where)  # where its whiteout is
        parent = self.open(where[:-1], _DIRECTORY)
        try:
            os.mkdir(where[-1], 0o755, dir_fd=parent)
        finally:
            os.close(parent)
        fd = self.open(where, _DIRECTORY)
        try:
            os.chmod(files.fd_path(fd), 0o755)  # whatever the umask
        finally:
            os.close(fd)
        if opaque:
            self._make_opaque(where)

    def _copy_directory(self, where: Path, below: Found) -> None:
        parent = self.open(where[:-1], _DIRECTORY)
        try:
            os.mkdir(where[-1], 0o700, dir_fd=parent)
            self._copy_attributes(parent, where, below)
        finally:
            os.close(parent)

    def _copy_file(self, where: Path, below: Found) -> None:
        """With all its names: what is one file stays one."""
        self._make(where[:-1])
        others = self._parents.other_names(where, below) if below.status.st_nlink > 1 else []
        source = self._parents.open(below.parent, where[:-1], _DIRECTORY)
        try:
            target = self.open(where[:-1], _DIRECTORY)
            try:
                self._copier.copy(source, target, where[-1], below.status)
                self._copy_attributes(target, where, below)
                for other in others:
                    self._link_to(target, where[-1], other)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _link_to(self, directory: int, name: bytes, other: Path) -> None:
        if self._below(other) is None:
            return  # the archive has brought something else, or has removed it
        self._make(other[:-1])
        target = self.open(other[:-1], _DIRECTORY)
        try:
            os.link(name, other[-1], src_dir_fd=directory, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(target)

    def _copy_attributes(self, directory: int, where: Path, below: Found) -> None:
        """And no others: what is new has something of its directory's default ACL."""
        target = files.fd_path(directory, where[-1])
        if not stat.S_ISLNK(below.status.st_mode):
            for acl in ACLS:
                with contextlib.suppress(OSError):  # ENODATA, EOPNOTSUPP
                    os.removexattr(target, acl, follow_symlinks=False)
        source = self._parents.open(below.parent, where[:-1], _DIRECTORY)
        try:
            copy_attributes(
                files.fd_path(source, where[-1]), target, below.status,
                leave_out=lambda name: marks.is_mark(name, self._form),
            )  # fmt: skip
        finally:
            os.close(source)

    def _hide(self, path: Path) -> None:
        self._is_marked = True
        self._mark(path[:-1], lambda fd: marks.hide(fd, path[-1], self._form))

    def _make_opaque(self, path: Path) -> None:
        self._is_marked = True
        self._mark(path, lambda fd: marks.make_opaque(fd, self._form))

    def _reveal(self, path: Path) -> None:
        if self._is_marked:
            self._mark(path[:-1], lambda fd: marks.reveal(fd, path[-1], self._form))

    def _mark(self, path: Path, mark: Callable[[int], None]) -> None:
        fd = self.open(path, _DIRECTORY)
        try:
            mark(fd)
        finally:
            os.close(fd)
