"""Listings without handles: each request says where to go on, and the server need not know that somebody reads.

Entries come in the order of a keyed hash of their names, and the cookie of an entry is its hash. That order does not
depend on which branch holds an entry, so that what is copied up, whited out, renamed or made opaque in the midst of a
listing neither repeats nor drops any other entry (the branches' own positions, d_off, would; and ext4's take all 63
bits). The hash is Python's own for bytes: SipHash under a key of the process, which cookies need not outlive. Two names
of one cookie, which a listing interrupted between them would make one, are expected once in 10^7 directories of a
million names.

What has been read of a directory is kept as a *window*: the names of a range of hashes, in order. A directory of up to
_MOST_NAMES names is one window; of a larger one the range is halved until it fits, and the names are read anew for each
window, without the lock, so that memory is bounded whatever the size.
"""

from __future__ import annotations

import bisect
import errno
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice

from unionfs.union import attributes, whiteout
from unionfs.union.attributes import Attr
from unionfs.union.errors import fail
from unionfs.union.nodes import Node
from unionfs.union.stack import Stack

# (name, inode number, file type as in st_mode, next cookie)
Entry = tuple[bytes, int, int, int]
# (name, attributes, next cookie)
EntryPlus = tuple[bytes, Attr, int]

# Of one window; about 100 bytes each.
_MOST_NAMES = 1 << 17
_MOST_WINDOWS = 64

# Hashes are signed 64-bit numbers; cookies are 62 bits and begin behind those of `.` and `..`.
_LAST_HASH = (1 << 63) - 1
_SHIFT = 2
_FIRST = (1 << 61) + 3


def _cookie(name: bytes) -> int:
    return (hash(name) >> _SHIFT) + _FIRST


def _hash_at(cookie: int) -> int:
    """The largest hash that has this cookie: names with larger ones are still to come."""
    return (cookie - _FIRST + 1 << _SHIFT) - 1


class _Window:
    """The names whose hashes are larger than `after` and not larger than `last`, in order."""

    __slots__ = ("after", "last", "names")

    def __init__(self, after: int, last: int, names: list[bytes]) -> None:
        self.after = after
        self.last = last
        self.names = names


class Listings:
    """Entries of directories. The windows, least recently used first, are guarded by Stack.lock."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._windows: OrderedDict[Node, _Window] = OrderedDict()

    def entries(self, node: Node, cookie: int, most: int) -> list[Entry]:
        """At most `most` entries after `cookie`, `.` and `..` first of all; none at the end. Cookie 0 lists anew, as
        rewinddir(3) asks."""
        stack = self._stack
        entries: list[Entry] = []
        for name, following in self._from(node, cookie):
            if len(entries) == most:
                break
            if following <= 2:
                shown = node if following == 1 else node.parent or node
                entries.append((name, shown.ino, stat.S_IFDIR, following))
                continue
            found = stack.resolve(node, name)
            if found is not None:
                with stack.holding():
                    shown = stack.adopt(node, name, found)
                    entries.append((name, shown.ino, shown.kind, following))
        return entries

    def entries_plus(self, node: Node, cookie: int, most: int) -> list[EntryPlus]:
        """The same with attributes; every entry but `.` and `..` counts one lookup of its node. An error is raised for
        the first entry only: what was counted must reach the kernel, whose next request then meets the error again."""
        stack = self._stack
        entries: list[EntryPlus] = []
        try:
            for name, following in self._from(node, cookie):
                if len(entries) == most:
                    break
                if following <= 2:
                    shown = node if following == 1 else node.parent or node
                    entries.append((name, attributes.getattr_(stack, shown), following))
                    continue
                found = stack.resolve(node, name)
                if found is not None:
                    shown = stack.adopt(node, name, found)
                    entries.append((name, attributes.getattr_(stack, shown), following))
                    shown.lookups += 1
        except OSError:
            if not entries:
                raise
        return entries

    def _from(self, node: Node, cookie: int) -> Iterator[tuple[bytes, int]]:
        """(name, cookie) of what may be an entry behind `cookie`."""
        if not node.is_directory:
            fail(errno.ENOTDIR)
        if cookie == 0:
            self._windows.pop(node, None)
            yield b".", 1
        if cookie <= 1:
            yield b"..", 2
        after = _hash_at(max(cookie, 2))
        while after < _LAST_HASH:
            window = self._window(node, after)
            for name in islice(window.names, bisect.bisect_right(window.names, after, key=hash), None):
                yield name, _cookie(name)
            after = window.last
        self._windows.pop(node, None)

    def _window(self, node: Node, after: int) -> _Window:
        """The window in which the names after `after` begin."""
        window = self._windows.get(node)
        if window is None or not window.after <= after < window.last:
            window = self._read(node, after)
            self._windows[node] = window
            while len(self._windows) > _MOST_WINDOWS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(node)
        return window

    def _read(self, node: Node, after: int) -> _Window:
        stack = self._stack
        last = _LAST_HASH
        found: dict[bytes, None] = {}
        hidden: set[bytes] = set()
        for index in node.layers:
            above = frozenset(hidden)
            for name in stack.directories.get(node, index).scan():
                if whiteout.is_reserved(name):
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

    def close(self) -> None:
        self._windows.clear()


def _within(names: Iterable[bytes], last: int) -> Iterator[bytes]:
    return (name for name in names if hash(name) <= last)
