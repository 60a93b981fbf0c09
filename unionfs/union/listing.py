"""Listings without handles: each request says where to go on, and the server need not know that somebody reads.

Entries come in the order of a keyed hash of their names, and the cookie of an entry is its hash. That order does not
depend on which branch holds an entry, so that what is copied up, whited out, renamed or made opaque in the midst of a
listing neither repeats nor drops any other entry (the branches' own positions, d_off, would; and ext4's take all 63
bits). The hash is Python's own for bytes: SipHash under a key of the process, which cookies need not outlive. Two names
of one cookie, which a listing interrupted between them would make one, are expected once in 10^7 directories of a
million names.

What has been read of a directory is kept as a *window*: the names of a range of hashes, in order. A directory of up to
_MOST_NAMES names is one window; of a larger one the range is halved until it fits, and the names are read anew for each
window, so that memory is bounded whatever the size. A million names are read so ten times, which costs as much again as
their attributes do; a listing by d_off would save that, and lose its place when the directory is copied up.
"""

from __future__ import annotations

import bisect
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter

from unionfs.linux import files
from unionfs.union import attributes, whiteout
from unionfs.union.attributes import Attr
from unionfs.union.errors import fail
from unionfs.union.nodes import Node
from unionfs.union.stack import Stack

# (name, inode number, file type as in st_mode, next cookie)
Entry = tuple[bytes, int, int, int]
# (name, attributes, next cookie)
EntryPlus = tuple[bytes, Attr, int]

# Of one window, and of all windows that are kept; about 60 bytes each, 180 with their hints.
_MOST_NAMES = 1 << 17
_MOST_KEPT = 1 << 18
_MOST_WINDOWS = 64
# Names read at once: 1 ms.
_CHUNK = 4096

# Hashes are signed 64-bit numbers; cookies are 62 bits and begin behind those of `.` and `..`.
_BEFORE = -(1 << 63) - 1
_LAST = (1 << 63) - 1
_SHIFT = 2
_FIRST = (1 << 61) + 3

_name_of = attrgetter("name")


class _Window:
    """The names whose hashes are larger than `after` and not larger than `last`, in order.

    `hints` has, if it has been asked for, the inode number and the type of names whose own branch says so in its
    listing: not those of directories, where a mount point or a subvolume shows another number, nor of devices, which
    may be whiteouts.
    """

    __slots__ = ("after", "hints", "last", "names")

    def __init__(self, after: int, last: int, names: list[bytes]) -> None:
        self.after = after
        self.last = last
        self.names = names
        self.hints: dict[bytes, tuple[int, int]] | None = None


class Listings:
    """Entries of directories. The windows, least recently used first, are guarded by Stack.lock."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._windows: OrderedDict[Node, _Window] = OrderedDict()

    def entries(self, node: Node, cookie: int, most: int) -> list[Entry]:
        """At most `most` entries behind `cookie`, `.` and `..` first of all; none at the end. Cookie 0 lists anew, as
        rewinddir(3) asks."""
        stack = self._stack
        entries: list[Entry] = [
            (name, shown.ino, stat.S_IFDIR, following) for name, shown, following in self._dots(node, cookie, most)
        ]
        after = _hash_at(cookie)
        while len(entries) < most and (names := self._names(node, after, most - len(entries))):
            for name in names:
                after = hash(name)
                found = stack.resolve(node, name)
                if found is not None:
                    shown = stack.node_at(node, name, found)
                    entries.append((name, shown.ino, shown.kind, (after >> _SHIFT) + _FIRST))
                    stack.unreference(shown, 0)
        return entries

    def entries_plus(self, node: Node, cookie: int, most: int) -> list[EntryPlus]:
        """The same with attributes; every entry but `.` and `..` counts one lookup of its node. An error is raised for
        the first entry only: what was counted must reach the kernel, whose next request then meets the error again."""
        stack = self._stack
        resolve, counted = stack.resolve, attributes.counted
        entries: list[EntryPlus] = [
            (name, attributes.getattr_(stack, shown), following)
            for name, shown, following in self._dots(node, cookie, most)
        ]
        after = _hash_at(cookie)
        try:
            while len(entries) < most and (names := self._names(node, after, most - len(entries))):
                for name in names:
                    after = hash(name)
                    found = resolve(node, name)
                    if found is not None:
                        entries.append((name, counted(stack, node, name, found), (after >> _SHIFT) + _FIRST))
        except OSError:
            if not entries:
                raise
        return entries

    def _dots(self, node: Node, cookie: int, most: int) -> list[tuple[bytes, Node, int]]:
        if not node.is_directory:
            fail(errno.ENOTDIR)
        if cookie == 0:
            self._windows.pop(node, None)
        return [(b".", node, 1), (b"..", node.parent or node, 2)][cookie:][:most] if cookie < 2 else []

    def _names(self, node: Node, after: int, most: int) -> list[bytes]:
        """Up to `most` names whose hashes come after `after`: what may be entries; none at the end."""
        while after < _LAST:
            window = self._windows.get(node)
            if window is None or not window.after <= after < window.last:
                window = self._read(node, after)
                self._keep(node, window)
            start = bisect.bisect_right(window.names, after, key=hash)
            if start < len(window.names):
                return window.names[start : start + most]
            after = window.last
        self._windows.pop(node, None)
        return []

    def _keep(self, node: Node, window: _Window) -> None:
        windows = self._windows
        windows[node] = window
        windows.move_to_end(node)
        while len(windows) > _MOST_WINDOWS or (len(windows) > 1 and sum(map(_weight, windows.values())) > _MOST_KEPT):
            windows.popitem(last=False)

    def _read(self, node: Node, after: int) -> _Window:
        """The window that begins after `after`. Names are filtered as they come, and the range is halved whenever too
        many have come; of a directory that is read in several chunks the lock is let go of in between."""
        last = _LAST
        found: dict[bytes, None] = {}
        hidden: set[bytes] = set()
        for index in node.layers:
            above = frozenset(hidden)
            for names in self._chunks(node, index):
                for name in names:
                    if name.startswith(whiteout.PREFIX):
                        name = name.removeprefix(whiteout.PREFIX)
                        if after < hash(name) <= last:
                            hidden.add(name)
                    elif after < hash(name) <= last and name not in above:
                        found[name] = None
                while len(found) + len(hidden) > _MOST_NAMES:
                    last = (after + last) // 2
                    found = dict.fromkeys(_within(found, last))
                    hidden = set(_within(hidden, last))
        return _Window(after, last, sorted(found, key=hash))

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


def _hash_at(cookie: int) -> int:
    """The largest hash that has this cookie: names with larger ones are still to come."""
    return (cookie - _FIRST + 1 << _SHIFT) - 1 if cookie > 2 else _BEFORE


def _weight(window: _Window) -> int:
    return len(window.names)


def _within(names: Iterable[bytes], last: int) -> Iterator[bytes]:
    return (name for name in names if hash(name) <= last)
