"""Two trees side by side, and what is different in the new one, in the order of a layer's archive.

A directory comes before what is in it; in it what is deleted comes first, then the rest, each sorted by its bytes. So
the order follows from the tree and from nothing else. Docker's rules (moby pkg/archive, changes.go):

- a change in a directory is a change of that directory, and of each above it; for the root that is not listed
- what is deleted with its directory is not listed by itself, nor what a file has replaced
- a directory that is one and the same in both trees (device and inode) is not entered

The trees may be in use, and deeper than PATH_MAX or our descriptors reach: what vanishes is left out, nothing recurses,
and each directory is opened from the root, by a path that is walked piece by piece. Memory is bounded by the names in
the directories above the current one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from typing import Literal

from drivers.api import Form
from drivers.diff import forms
from drivers.diff.change import Found, is_gone
from drivers.diff.compare import is_same, is_same_root
from drivers.disk.trees import open_below


@dataclass(slots=True)
class _Directory:
    """A directory of the new tree that is being walked. `kind` is None for one that is unchanged so far."""

    path: bytes
    kind: Literal["A", "C"] | None
    old: bool  # the old tree has a directory there
    hiding: bool = False  # nothing of the old one shines through: the new one is opaque, or in one that is
    shown: bool = False
    names: list[bytes] | None = None  # still to be looked at, the next one last; None before it is read


def differences(
    new_root: int, old_root: int | None, form: Form | None = None, *, mount_points: Collection[bytes] = ()
) -> Generator[Found, None, None]:
    """What the tree at `new_root` has and the one at `old_root` lacks, and the reverse; without an old tree, all.

    The new tree stands in `form`; the old one is a plain tree. The root itself comes first, if its attributes differ or
    there is no old tree. What was added only to mount on is left out: an empty file, or a directory that shows nothing
    else, whose path is one of `mount_points` or leads to one. The iterator has directories open until it is closed.
    Raises OSError.
    """
    walk = _Walk(new_root, old_root, form, mount_points)
    try:
        yield from walk.run()
    finally:
        walk.close()


class _Walk:
    def __init__(self, new_root: int, old_root: int | None, form: Form | None, mount_points: Collection[bytes]) -> None:
        self._new_root = new_root
        self._old_root = old_root
        self._form = form
        self._mount_points = frozenset(path[:end] for path in mount_points for end in _ends(path))
        self._above: list[_Directory] = []  # the directory that is walked is the last one
        self._opened: bytes | None = None  # the path that the two descriptors are open on
        self._new = self._old = -1

    def close(self) -> None:
        for fd in (self._new, self._old):
            if fd >= 0:
                os.close(fd)
        self._opened, self._new, self._old = None, -1, -1

    def run(self) -> Iterator[Found]:
        kind: Literal["A", "C"] | None = "A" if self._old_root is None else None
        if self._old_root is not None and not is_same_root(self._new_root, self._old_root):
            kind = "C"
        root = _Directory(b"", kind, self._old_root is not None)
        if kind is None:
            root.shown = True  # Docker's third rule
        self._above.append(root)
        while self._above:
            directory = self._above[-1]
            if directory.names is None:
                yield from self._begin(directory)
            elif directory.names:
                yield from self._entry(directory, directory.names.pop())
            else:
                self._above.pop()

    def _begin(self, directory: _Directory) -> Iterator[Found]:
        """Read it. If it has itself changed it is shown now, and so is what it hides."""
        directory.names = []
        try:
            self._open(directory)
            listing = forms.read(self._new, self._form)
            below = forms.read(self._old, None).names if directory.old else set()
        except OSError as error:
            if is_gone(error):
                return
            raise
        directory.hiding = directory.hiding or listing.opaque
        gone = (below if directory.hiding else listing.hides(below)) - listing.names
        replaced = below & listing.sockets  # whiteouts too, in an archive
        directory.names = sorted(listing.names - replaced, reverse=True)
        if directory.kind is not None and not (directory.kind == "A" and directory.path in self._mount_points):
            yield from self._show()
        for name in sorted(gone | replaced):
            if name in replaced:
                yield from self._entry(directory, name)
            else:
                yield from self._show()
                yield Found("D", _join(directory.path, name), -1, b"", None, True)

    def _entry(self, directory: _Directory, name: bytes) -> Iterator[Found]:
        try:
            self._open(directory)
            new = os.stat(name, dir_fd=self._new, follow_symlinks=False)
            old = _status(self._old, name) if directory.old else None
            same = old is not None and is_same(self._new, self._old, name, new, old)
        except OSError as error:
            if is_gone(error):
                return
            raise
        path = _join(directory.path, name)
        if stat.S_ISDIR(new.st_mode):
            if old is not None and os.path.samestat(new, old):
                return
            is_directory = old is not None and stat.S_ISDIR(old.st_mode)
            kind: Literal["A", "C"] | None = "A" if old is None else None if same else "C"
            self._above.append(_Directory(path, kind, is_directory, directory.hiding))
        elif old is None and not new.st_size and path in self._mount_points:
            return
        elif not same:
            yield from self._show()
            self._open(directory)
            yield Found("A" if old is None else "C", path, self._new, name, new, old is not None)
        elif new.st_nlink > 1:
            yield Found("=", path, self._new, name, new, True)

    def _show(self) -> Iterator[Found]:
        """Show the directories that lead here and have not been shown."""
        for directory in self._above:
            if directory.shown:
                continue
            directory.shown = True
            try:
                fd = open_below(self._new_root, directory.path)
            except OSError as error:
                if is_gone(error):
                    continue
                raise
            try:
                yield Found(directory.kind or "C", directory.path, fd, b"", os.fstat(fd), directory.kind != "A")
            finally:
                os.close(fd)

    def _open(self, directory: _Directory) -> None:
        """Have the two descriptors be those of `directory`. Raises OSError."""
        if self._opened == directory.path:
            return
        self.close()
        self._new = open_below(self._new_root, directory.path)
        if directory.old:
            assert self._old_root is not None
            self._old = open_below(self._old_root, directory.path)
        self._opened = directory.path


def _status(fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _ends(path: bytes) -> Iterator[int]:
    """Where the paths of the directories above it, and the path itself, end."""
    yield from (at for at, byte in enumerate(path) if byte == ord("/"))
    yield len(path)


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name
