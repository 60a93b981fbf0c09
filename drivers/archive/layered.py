"""Extraction into a directory of differences: the tree has what the parents have as well, and nothing is mounted.

    own       the directory that is written to; what it lacks shines through from the parents, nearest first,
    parents   which are only read (drivers.archive.parents)

What a union would do on the way to the same tree is done here: a directory that comes from a parent is copied before
something is made in it, and so is a file before it gets a hard link; what is removed is hidden by a mark of the form
(`marks`). Every name is opened as in `walk`, confined to one directory, and links are followed in the whole tree.

containerd extracts into the layers of overlay and aufs likewise (core/diff/apply/apply_linux.go).
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from drivers.api import Form
from drivers.archive import marks
from drivers.archive.limits import Limits
from drivers.archive.parents import Found, Parents
from drivers.archive.policy import ACLS, Path
from drivers.archive.walk import Link, Root, canonical, joined
from drivers.disk.copytree import Copier, copy_attributes
from unionfs.linux import files
from unionfs.union.form import is_overlay_whiteout

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_PATH_MAX = 4095  # without its NUL
_BLOCK = 512  # of st_blocks, stat(2)
_BY_ITSELF = 4  # what one name looked at alone costs, with its marks, counted in looks at directories on a path


class Onto(NamedTuple):
    """Descriptors of a directory of differences and of those below it, nearest first; `form` is that of `marks`."""

    own: int
    parents: Sequence[int]
    form: Form


class _Own(NamedTuple):
    """How many names of a path lead through our own directories; what is there then, None for nothing; and whether the
    next name, or the whole path, is hidden in the parents."""

    length: int
    status: os.stat_result | None
    hidden: bool


class LayeredRoot(Root):
    """A Root whose directory is one of differences; see Root for the methods."""

    def __init__(self, onto: Onto, limits: Limits) -> None:
        super().__init__(onto.own, limits)
        self._form = onto.form
        self._parents = Parents(onto.parents, onto.form, self.spent)
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
            return  # it is this archive's, and has replaced what was there
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
        where = (*canonical(path[:-1], self._first_link, self.spent), *path[-1:])
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
        begin = 0 if self._is_marked else self._directories(path)
        fd = self.open(path[:begin], _DIRECTORY)
        hidden = False
        try:
            for length, name in enumerate(path[begin:], begin):
                self.spent.look(_BY_ITSELF)
                hidden = hidden or (self._is_marked and marks.is_opaque(fd, self._form))
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    return _Own(length, None, hidden or (self._is_marked and marks.hides(fd, name, self._form)))
                if is_overlay_whiteout(status):
                    return _Own(length, None, True)
                if not stat.S_ISDIR(status.st_mode):
                    return _Own(length, status, True)
                below = os.open(name, _DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = below
            return _Own(len(path), os.fstat(fd), hidden)
        finally:
            os.close(fd)

    def _directories(self, path: Path) -> int:
        """How many names of a path lead through our own directories, whatever these hide."""
        self.spent.look(len(path))
        if self._is_reached(path):
            return len(path)
        return bisect.bisect_left(range(1, len(path)), True, key=lambda length: not self._is_reached(path[:length]))

    def _is_reached(self, path: Path) -> bool:
        try:
            os.close(self.open(path, _DIRECTORY))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return False
        return True

    def _below(self, path: Path) -> Found | None:
        """What shines through from the parents."""
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
            with _dated(parent):
                os.mkdir(where[-1], 0o700, dir_fd=parent)
                self._copy_attributes(parent, where, below)
        finally:
            os.close(parent)

    def _copy_file(self, where: Path, below: Found) -> None:
        """With all its names: what is one file stays one."""
        self.spent.write(min(below.status.st_size, below.status.st_blocks * _BLOCK))  # holes stay holes
        self._make(where[:-1])
        source = self._parents.open(below.parent, where[:-1], _DIRECTORY)
        try:
            target = self.open(where[:-1], _DIRECTORY)
            try:
                with _dated(target):
                    self._copier.copy(source, target, where[-1], below.status)
                    self._copy_attributes(target, where, below)
                if below.status.st_nlink > 1:
                    for directory, names in self._parents.other_names(where, below):
                        self._link(target, where[-1], directory, names)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _link(self, source: int, name: bytes, directory: Path, names: list[bytes]) -> None:
        """Give a file those of its other names that the archive has neither replaced nor removed."""
        own = self._own(directory)
        if own.hidden:
            return
        if own.length == len(directory):
            names = self._uncovered(directory, names)
        if not names:
            return
        self._make(directory)
        target = self.open(directory, _DIRECTORY)
        try:
            with _dated(target):
                for other in names:
                    os.link(name, other, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(target)

    def _uncovered(self, directory: Path, names: list[bytes]) -> list[bytes]:
        """Those that shine through a directory of our own."""
        fd = self.open(directory, _DIRECTORY)
        try:
            if self._is_marked and marks.is_opaque(fd, self._form):
                return []
            return [name for name in names if not marks.covers(fd, name, self._form)]
        finally:
            os.close(fd)

    def _copy_attributes(self, directory: int, where: Path, below: Found) -> None:
        """Copy these and leave no others: what is new has inherited some from its directory's default ACL."""
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


@contextlib.contextmanager
def _dated(directory: int) -> Iterator[None]:
    """Have the directory keep its times: what shone through it before is in it now (fs/overlayfs/copy_up.c,
    "Restore timestamps on parent")."""
    status = os.fstat(directory)
    yield
    os.utime(files.fd_path(directory), ns=(status.st_atime_ns, status.st_mtime_ns))
