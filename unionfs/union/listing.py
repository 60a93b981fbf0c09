"""Listings without handles: each request says where to go on, and the server need not know that somebody reads.

Entries come in the order of a keyed hash of their names, and the cookie of an entry is its hash. That order does not
depend on which branch holds an entry, so that what is copied up, whited out, renamed or made opaque in the midst of a
listing neither repeats nor drops any other entry (the branches' own positions, d_off, would; and ext4's take all 63
bits). The hash is Python's own for bytes: SipHash under a key of the process, which cookies need not outlive. Two names
of one cookie, which a listing interrupted between them would make one, are expected once in 10^7 directories of a
million names.

What has been read of a directory is kept as a *window*: the names of a range of hashes, in order. A directory of up to
_MOST_NAMES names is one window; of a larger one the range is halved until it fits, and the names are read anew for each
window, so that memory is bounded whatever the size: five times of a million names, at 0.4 us a name.
"""

from __future__ import annotations

import bisect
import errno
import os
import stat
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter

from unionfs.linux import files
from unionfs.union import attributes, whiteout
from unionfs.union.attributes import Attr
from unionfs.union.errors import fail
from unionfs.union.identity import Source
from unionfs.union.nodes import Node
from unionfs.union.stack import Found, Stack

# (name, inode number, file type as in st_mode, next cookie)
Entry = tuple[bytes, int, int, int]
# (name, attributes, next cookie)
EntryPlus = tuple[bytes, Attr, int]

# Of one window, and of all windows that are kept; about 60 bytes each. Hints are about 140 bytes each.
_MOST_NAMES = 1 << 18
_MOST_KEPT = 1 << 19
_MOST_HINTS = 1 << 15
_MOST_WINDOWS = 64
# Names read at once: 1 ms.
_CHUNK = 4096

# Hashes are signed 64-bit numbers; cookies are 62 bits and begin behind those of `.` and `..`.
_BEFORE = -(1 << 63) - 1
_LAST = (1 << 63) - 1
_SHIFT = 2
_FIRST = (1 << 61) + 3

_FORMAT = 0o170000  # S_IFMT
_FILE = stat.S_IFREG >> 12
_LINK = stat.S_IFLNK >> 12

_name_of = attrgetter("name")


class _Window:
    """The names whose hashes are larger than `after` and not larger than `last`, in order. Names that are whited
    out are among them: `Stack.resolve` tells.

    `hints` has, once it has been asked for, the inode number and the type of the names whose own directory entry says
    so reliably, packed; see `Listings._hints`.
    """

    __slots__ = ("after", "hints", "last", "names", "weight")

    def __init__(self, after: int, last: int, names: list[bytes]) -> None:
        self.after = after
        self.last = last
        self.names = names
        self.hints: dict[bytes, int] | None = None
        self.weight = 0

    def following(self, after: int, most: int) -> list[bytes]:
        """At most `most` of those whose hashes are larger than `after`."""
        start = bisect.bisect_right(self.names, after, key=hash)
        return self.names[start : start + most]


class Listings:
    """Entries of directories. The windows, the last used last, are guarded by Stack.lock."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._windows: dict[Node, _Window] = {}
        self._weight = 0

    def entries(self, node: Node, cookie: int, most: int) -> list[Entry]:
        """At most `most` entries behind `cookie`, `.` and `..` first of all; none at the end. Cookie 0 lists anew, as
        rewinddir(3) asks."""
        stack = self._stack
        entries: list[Entry] = [
            (name, shown.ino, stat.S_IFDIR, following) for name, shown, following in self._dots(node, cookie, most)
        ]
        after = _hash_at(cookie)
        source = self._plain(node)
        while len(entries) < most and (window := self._window(node, after)):
            hints = {} if source is None else self._hints(node, window)
            names = window.following(after, most - len(entries))
            after = hash(names[-1])
            for name in names:
                number = 0
                if source is not None and (hint := hints.get(name)) is not None:
                    number = self._number(source, hint >> 4)
                    kind = (hint & 15) << 12
                if not number:
                    found = stack.resolve(node, name)
                    if found is None:
                        continue
                    shown = stack.node_at(node, name, found)
                    number, kind = shown.ino, shown.kind
                    stack.unreference(shown, 0)
                entries.append((name, number, kind, _cookie(name)))
        if not entries:
            self._drop(node)
        return entries

    def entries_plus(self, node: Node, cookie: int, most: int) -> list[EntryPlus]:
        """The same with attributes; every entry but `.` and `..` counts one lookup of its node. An error is raised for
        the first entry only: what was counted must reach the kernel, whose next request then meets the error again."""
        entries: list[EntryPlus] = [
            (name, self._directory(shown), following) for name, shown, following in self._dots(node, cookie, most)
        ]
        after = _hash_at(cookie)
        try:
            while len(entries) < most and (window := self._window(node, after)):
                names = window.following(after, most - len(entries))
                self._add_plus(node, names, entries)
                after = hash(names[-1])
        except OSError:
            if not entries:
                raise
        if not entries:
            self._drop(node)
        return entries

    def _add_plus(self, node: Node, names: list[bytes], entries: list[EntryPlus]) -> None:
        """Here a walk of a tree spends its time: so in a directory of one branch nothing is to be resolved, and files
        with one name and a number of their own, most of all, do not go through `counted`, which does the same slower.
        """
        stack = self._stack
        source = node.source
        directory = stack.directories.get(node, source.branch) if node.layers == (source.branch,) else None
        for name in names:
            if directory is None:
                found = stack.resolve(node, name)
            else:
                entry = directory.stat(name)
                if entry is None:
                    continue
                kind = entry.st_mode & _FORMAT
                if (
                    kind == stat.S_IFREG
                    and entry.st_nlink == 1
                    and entry.st_dev == source.device
                    and (source.branch or not stack.identity.may_be_copy(entry.st_ino))
                ):
                    file, new = stack.nodes.of_file(source.number(entry.st_ino), source, entry)
                    file.lookups += 1
                    if new:
                        file.branch = source.branch
                    if file.parent is not node or file.name != name:
                        stack.give_name(file, node, name)
                    entries.append((name, attributes.of_entry(stack, file, entry), _cookie(name)))
                    continue
                if kind == stat.S_IFCHR and whiteout.is_overlay_whiteout(entry):
                    continue
                found = Found(source.branch, entry, node.layers if kind == stat.S_IFDIR else ())
            if found is not None:
                entries.append((name, attributes.counted(stack, node, name, found), _cookie(name)))

    def _dots(self, node: Node, cookie: int, most: int) -> list[tuple[bytes, Node, int]]:
        if not node.is_directory:
            fail(errno.ENOTDIR)
        if cookie == 0:
            self._drop(node)
        return [(b".", node, 1), (b"..", node.parent or node, 2)][cookie:][:most] if cookie < 2 else []

    def _directory(self, node: Node) -> Attr:
        """The attributes of a directory, by its descriptor where it has one: it will be needed anyway."""
        if not node.layers:
            return attributes.getattr_(self._stack, node)
        entry = os.fstat(self._stack.directories.get(node, node.layers[0]).fd)
        return attributes.of_entry(self._stack, node, entry)

    def _window(self, node: Node, after: int) -> _Window | None:
        """The window in which the names after `after` begin; None at the end."""
        while after < _LAST:
            window = self._windows.pop(node, None)
            if window is not None and window.after <= after < window.last:
                self._windows[node] = window
            else:
                if window is not None:
                    self._weight -= window.weight
                window = self._read(node, after)
                self._keep(node, window)
            if window.names and after < hash(window.names[-1]):
                return window
            after = window.last
        return None

    # Numbers and types without a status.

    def _plain(self, node: Node) -> Source | None:
        """The source of all files in a directory, if it is one branch's and nothing can be a copy unknown to us."""
        stack = self._stack
        index = node.source.branch
        if node.layers != (index,) or stack.nodes.any_collided:
            return None
        unknown = stack.pseudo_links.any_in(index) if index else stack.identity.all_may_be_copies
        return None if unknown else node.source

    def _hints(self, node: Node, window: _Window) -> dict[bytes, int]:
        """Of the files and symbolic links in a window, as inode number and type in four bits. Not of directories, where
        a mount point or a subvolume shows another number, nor of devices, which may be whiteouts; and none where
        readdir(3) and stat(2) disagree, as in some FUSE file systems."""
        if window.hints is None:
            window.hints = {}
            if len(window.names) <= _MOST_HINTS:
                directory = self._stack.directories.get(node, node.layers[0])
                window.hints = _read_hints(directory.fd)
                for name, hint in islice(window.hints.items(), 1):
                    entry = directory.stat(name)
                    if entry is None or entry.st_ino != hint >> 4:
                        window.hints = {}
                self._keep(node, window)
        return window.hints

    def _number(self, source: Source, inode: int) -> int:
        """The number of a file known by its inode number only; 0 if it may have another."""
        if source.branch == 0 and self._stack.identity.may_be_copy(inode):
            return 0
        number = source.number(inode)
        node = self._stack.nodes.find(number)
        return number if node is None or (node.inode == inode and node.source is source) else 0

    # Windows.

    def _keep(self, node: Node, window: _Window) -> None:
        self._drop(node)
        window.weight = len(window.names) + 2 * len(window.hints or ())
        self._windows[node] = window
        self._weight += window.weight
        while len(self._windows) > _MOST_WINDOWS or (len(self._windows) > 1 and self._weight > _MOST_KEPT):
            self._drop(next(iter(self._windows)))

    def _drop(self, node: Node) -> None:
        window = self._windows.pop(node, None)
        if window is not None:
            self._weight -= window.weight

    def _read(self, node: Node, after: int) -> _Window:
        """The window that begins after `after`. Names are filtered as they come, and the range is halved whenever too
        many have come; of a directory that is read in several chunks the lock is let go of in between."""
        last = _LAST
        found: list[bytes] = []
        layers = node.layers
        for index in layers:
            if node.layers != layers:
                break
            for chunk in self._chunks(node, index):
                found += _between(after, last, chunk)
                while len(found) > _MOST_NAMES:
                    last = (after + last) // 2
                    found = _between(after, last, found)
        if node.layers != layers:
            # Changed meanwhile: what was lower when the writable branch was read may be there now.
            return self._read(node, after)
        if len(layers) > 1:
            found = list(dict.fromkeys(found))
        found.sort(key=hash)
        return _Window(after, last, found)

    def _chunks(self, node: Node, index: int) -> Iterator[list[bytes]]:
        stack = self._stack
        with os.scandir(files.fd_path(stack.directories.get(node, index).fd)) as entries:
            names = list(islice(map(_name_of, entries), _CHUNK))
            yield names
            if len(names) < _CHUNK:
                return
            stack.waiting.begins()
            node.lookups += 1
            try:
                while names:
                    with stack.unlocked():
                        names = list(islice(map(_name_of, entries), _CHUNK))
                    yield names
            finally:
                stack.unreference(node, 1)

    def close(self) -> None:
        self._windows.clear()
        self._weight = 0


def _cookie(name: bytes) -> int:
    return (hash(name) >> _SHIFT) + _FIRST


def _hash_at(cookie: int) -> int:
    """The largest hash that has this cookie: names with larger ones are still to come."""
    return (cookie - _FIRST + 1 << _SHIFT) - 1 if cookie > 2 else _BEFORE


def _read_hints(fd: int) -> dict[bytes, int]:
    hints = {}
    with os.scandir(files.fd_path(fd)) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                hints[entry.name] = entry.inode() << 4 | _FILE
            elif entry.is_symlink():
                hints[entry.name] = entry.inode() << 4 | _LINK
    return hints


def _between(after: int, last: int, names: list[bytes]) -> list[bytes]:
    return [name for name in names if after < hash(name) <= last and not name.startswith(whiteout.PREFIX)]
