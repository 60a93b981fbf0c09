"""Listings without handles: each request says where to go on, and the server need not know that somebody reads.

Entries come in the order of a hash of their names, in which a cookie is a point (`cookies`). That order does not depend
on which branch holds an entry, so that what is copied up, whited out, renamed or made opaque in the midst of a listing
neither repeats nor drops any other entry (the branches' own positions, d_off, would; and ext4's take all 63 bits).

What has been read of a directory is kept as a *window*: the names of a range of hashes, in order. A directory of up to
_MOST_NAMES names is one window; of a larger one the range is halved until it fits, and the names are read anew for each
window, so that memory is bounded whatever the size: five times of a million names, at 0.4 us a name.
"""

from __future__ import annotations

import bisect
import errno
import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import attrgetter

from unionfs.linux import files
from unionfs.union import attributes, form
from unionfs.union.attributes import Attr
from unionfs.union.branch import Branch
from unionfs.union.cookies import LAST, Cookies
from unionfs.union.directories import BranchDirectory
from unionfs.union.errors import fail
from unionfs.union.identity import Source
from unionfs.union.merge import Merge
from unionfs.union.nodes import Node
from unionfs.union.resolve import Found
from unionfs.union.stack import Stack

# (name, inode number, file type as in st_mode, next cookie)
Entry = tuple[bytes, int, int, int]
# (name, attributes, next cookie)
EntryPlus = tuple[bytes, Attr, int]

# Of one window, and of all windows that are kept; about 80 bytes each.
_MOST_NAMES = 1 << 18
_MOST_KEPT = 1 << 19
_MOST_WINDOWS = 64
# Of one window that has hints; 140 bytes each while it is read, 8 then.
_MOST_HINTS = 1 << 17
# Names read at once: 1 ms.
_CHUNK = 4096

_FORMAT = 0o170000  # S_IFMT
_FILE = stat.S_IFREG >> 12
_LINK = stat.S_IFLNK >> 12
_LONGEST_INODE = 60  # bits: four of 64 are the type's

_name_of = attrgetter("name")


class _Window:
    """The names whose hashes are larger than `after` and not larger than `last`, in order, as they were when the
    directory merged `layers`. The range ends where a bucket of cookies does. Names that are whited out are among them:
    `Stack.resolve` tells.

    `where` has the branches of each name, top first (`merge`); None: there is only one branch.
    `hints` has the inode number and the type of each as its topmost directory entry says, packed by `_hint`, or 0; it
    is empty in a very large window. `sources` has, of the branches that were asked for it, the source of their files,
    None where readdir(3) and stat(2) disagree.
    """

    __slots__ = ("after", "hints", "last", "layers", "names", "sources", "where")

    def __init__(self, merge: Merge, layers: tuple[Branch, ...], hints: dict[bytes, int]) -> None:
        self.after = merge.after
        self.last = merge.last
        self.layers = layers
        self.names = names = sorted(merge.where, key=hash)
        self.where: list[tuple[Branch, ...]] | None = None
        if len(layers) > 1:
            same: dict[tuple[Branch, ...], tuple[Branch, ...]] = {}
            self.where = [same.setdefault(at, at) for at in (tuple(merge.where[name]) for name in names)]
        self.hints = array("Q", map(hints.__getitem__, names)) if hints else ()
        self.sources: dict[Branch, Source | None] = {}

    def following(self, after: int, most: int) -> range:
        """The places of at most `most` of those whose hashes are larger than `after`."""
        start = bisect.bisect_right(self.names, after, key=hash)
        return range(start, min(start + most, len(self.names)))

    def branches(self, at: int) -> tuple[Branch, ...]:
        return self.layers if self.where is None else self.where[at]


class Listings:
    """Entries of directories. The windows, the last used last, are guarded by Stack.lock. `_reading` has of each
    directory the last read of names that is under way, if nobody has begun a listing since: others have not got what
    that one must."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._cookies = Cookies()
        self._windows: dict[Node, _Window] = {}
        self._reading: dict[Node, object] = {}
        self._weight = 0

    def entries(self, node: Node, cookie: int, most: int) -> list[Entry]:
        """At most `most` entries behind `cookie`, `.` and `..` first of all; none at the end. Cookie 0 lists anew, as
        rewinddir(3) asks."""
        entries: list[Entry] = [
            (name, shown.ino, stat.S_IFDIR, following) for name, shown, following in self._dots(node, cookie, most)
        ]
        after = self._cookies.point(cookie)
        while len(entries) < most and (window := self._window(node, after)):
            hints = () if self._stack.nodes.any_collided else window.hints
            places = window.following(after, most - len(entries))
            self._add(node, window, hints, places, entries)
            after = hash(window.names[places[-1]])
        if not entries:
            self._drop(node)
        return entries

    def _add(self, node: Node, window: _Window, hints: Sequence[int], places: range, entries: list[Entry]) -> None:
        """Here a large directory spends its time: so what a hint tells goes through no other function."""
        stack = self._stack
        find = stack.nodes.find
        upper = self._upper(node)
        writable = upper and upper.branch
        sources: dict[Branch, Source | None] = {}
        for at, cookie in zip(places, self._cookies.of(window.names, places), strict=True):
            name = window.names[at]
            branches = window.branches(at)
            if hints and (hint := hints[at]) and (upper is None or branches[0] is writable or upper.lacks(name)):
                top, inode = branches[0], hint >> 4
                if top not in sources:
                    sources[top] = self._source(node, window, top, name, inode)
                source = sources[top]
                if source is not None and (copies := source.copies) is not None and inode not in copies:
                    number = source.number(inode)
                    known = find(number)
                    if known is None or (known.inode == inode and known.source is source):
                        entries.append((name, number, (hint & 15) << 12, cookie))
                        continue
            found = stack.resolve(node, name, among=_among(upper, branches))
            if found is not None:
                shown = stack.node_at(node, name, found)
                entries.append((name, shown.ino, shown.kind, cookie))
                stack.unreference(shown, 0)

    def entries_plus(self, node: Node, cookie: int, most: int) -> list[EntryPlus]:
        """The same with attributes; every entry but `.` and `..` counts one lookup of its node. An error is raised for
        the first entry only: what was counted must reach the kernel, whose next request then meets the error again."""
        entries: list[EntryPlus] = [
            (name, self._directory(shown), following) for name, shown, following in self._dots(node, cookie, most)
        ]
        after = self._cookies.point(cookie)
        try:
            while len(entries) < most and (window := self._window(node, after)):
                places = window.following(after, most - len(entries))
                self._add_plus(node, window, places, entries)
                after = hash(window.names[places[-1]])
        except OSError:
            if not entries:
                raise
        if not entries:
            self._drop(node)
        return entries

    def _add_plus(self, node: Node, window: _Window, places: range, entries: list[EntryPlus]) -> None:
        """Here a walk of a tree spends its time: so what one branch has alone is not to be resolved, and files with one
        name and a number of their own, most of all, do not go through `counted`, which does the same slower.
        """
        stack = self._stack
        upper = self._upper(node)
        last: Branch | None = None
        for at, cookie in zip(places, self._cookies.of(window.names, places), strict=True):
            name = window.names[at]
            branches = window.branches(at)
            branch = branches[0]
            if len(branches) > 1 or not (upper is None or branch is upper.branch or upper.lacks(name)):
                found = stack.resolve(node, name, among=_among(upper, branches))
            else:
                if branch is not last:
                    last, directory = branch, stack.directories.get(node, branch)
                    sources = stack.identity.sources[branch]
                entry = directory.stat(name)
                if entry is None:
                    continue
                kind = entry.st_mode & _FORMAT
                if (
                    kind == stat.S_IFREG
                    and entry.st_nlink == 1
                    and (source := sources.get(entry.st_dev)) is not None
                    and (copies := source.copies) is not None
                    and entry.st_ino not in copies
                ):
                    file, _ = stack.nodes.of_file(source.number(entry.st_ino), source, entry)
                    file.lookups += 1
                    if file.parent is not node or file.name != name:
                        stack.give_name(file, node, name)
                    entries.append((name, attributes.of_entry(stack, file, entry), cookie))
                    continue
                if kind == stat.S_IFCHR and form.is_overlay_whiteout(entry):
                    continue
                found = Found(branch, entry, branches if kind == stat.S_IFDIR else ())
            if found is not None:
                entries.append((name, attributes.counted(stack, node, name, found), cookie))

    def _upper(self, node: Node) -> BranchDirectory | None:
        """The writable branch's part of a directory, which may have changed since a window was read."""
        stack = self._stack
        return stack.upper(node) if node.is_upper else None

    def _dots(self, node: Node, cookie: int, most: int) -> list[tuple[bytes, Node, int]]:
        if not node.is_directory:
            fail(errno.ENOTDIR)
        if cookie == 0:
            self._drop(node)
            self._reading.pop(node, None)
        return [(b".", node, 1), (b"..", node.parent or node, 2)][cookie:][:most] if cookie < 2 else []

    def _directory(self, node: Node) -> Attr:
        """The attributes of a directory, by its descriptor where it has one: it will be needed anyway."""
        if not node.layers:
            return attributes.getattr_(self._stack, node)
        entry = os.fstat(self._stack.directories.get(node, node.layers[0]).fd)
        return attributes.of_entry(self._stack, node, entry)

    def _window(self, node: Node, after: int) -> _Window | None:
        """The window in which the names after `after` begin; None at the end."""
        while after < LAST:
            window = self._windows.pop(node, None)
            if window is not None and window.layers == node.layers and window.after <= after < window.last:
                self._windows[node] = window
            else:
                if window is not None:
                    self._weight -= len(window.names)
                reading = self._reading[node] = object()
                try:
                    window = self._read(node, after)
                finally:
                    is_last = self._reading.get(node) is reading
                    if is_last:
                        del self._reading[node]
                if is_last:
                    self._keep(node, window)
            if window.names and after < hash(window.names[-1]):
                return window
            after = window.last
        return None

    # Numbers and types without a status.

    def _source(self, node: Node, window: _Window, branch: Branch, name: bytes, inode: int) -> Source | None:
        """The source of all files that a directory has in a branch, if hints about them are true, as that for `name`
        is, and nothing can be a copy unknown to us. Some FUSE file systems say one thing in readdir(3) and another in
        stat(2)."""
        stack = self._stack
        identity = stack.identity
        holds = identity.may_hold_copies(branch)
        if identity.all_may_be_copies(branch) if holds else stack.pseudo_links.any_in(branch):
            return None
        if branch not in window.sources:
            directory = stack.directories.get(node, branch)
            entry = directory.stat(name)
            if entry is None:
                return None
            agree = entry.st_ino == inode
            window.sources[branch] = identity.source(branch, directory.fd, name, entry) if agree else None
        return window.sources[branch]

    # Windows.

    def _keep(self, node: Node, window: _Window) -> None:
        self._drop(node)
        self._windows[node] = window
        self._weight += len(window.names)
        while len(self._windows) > _MOST_WINDOWS or (len(self._windows) > 1 and self._weight > _MOST_KEPT):
            self._drop(next(iter(self._windows)))

    def _drop(self, node: Node) -> None:
        window = self._windows.pop(node, None)
        if window is not None:
            self._weight -= len(window.names)

    def _read(self, node: Node, after: int) -> _Window:
        """The window that begins after `after`. Names are filtered as they come, and the range is halved whenever too
        many have come; of a directory that is read in several chunks the lock is let go of in between."""
        merge = Merge(after)
        hints: dict[bytes, int] = {}
        layers = node.layers
        for branch in layers:
            if node.layers != layers:
                break
            merge.enter(branch)
            for chunk in self._chunks(node, branch):
                merge.add(map(_name_of, chunk))
                while len(merge.where) > _MOST_NAMES and merge.halve():
                    hints = {name: hint for name, hint in hints.items() if name in merge.where}
                if len(merge.where) > _MOST_HINTS:
                    hints = {}
                    continue
                for entry in chunk:
                    if entry.name in merge.where and entry.name not in hints:
                        hints[entry.name] = _hint(entry)
        if node.layers != layers:
            # Changed meanwhile: what was lower when the writable branch was read may be there now.
            return self._read(node, after)
        return _Window(merge, layers, hints if len(hints) == len(merge.where) else {})

    def _chunks(self, node: Node, branch: Branch) -> Iterator[list[os.DirEntry[bytes]]]:
        stack = self._stack
        # Of its own: an entry without a type is looked at by this path, when the cache may have closed its directory.
        fd = os.dup(stack.directories.get(node, branch).fd)
        try:
            with os.scandir(files.fd_path(fd)) as entries:
                chunk = list(islice(entries, _CHUNK))
                yield chunk
                if len(chunk) < _CHUNK:
                    return
                stack.waiting.begins()
                node.lookups += 1
                try:
                    while chunk:
                        with stack.unlocked():
                            chunk = list(islice(entries, _CHUNK))
                        yield chunk
                finally:
                    stack.unreference(node, 1)
        finally:
            os.close(fd)

    def close(self) -> None:
        self._windows.clear()
        self._weight = 0


def _hint(entry: os.DirEntry[bytes]) -> int:
    """Inode number and type in four bits, of a file or a symbolic link. 0 for a directory, where a mount point or a
    subvolume shows another number, for a device, which may be a whiteout, and for a name that may be hidden unseen."""
    if len(entry.name) > form.PREFIXED_MAX:
        return 0
    kind = _FILE if entry.is_file(follow_symlinks=False) else _LINK if entry.is_symlink() else 0
    inode = entry.inode()
    return inode << 4 | kind if kind and not inode >> _LONGEST_INODE else 0


def _among(upper: BranchDirectory | None, branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """Where a name of a window is to be resolved: in the writable branch too, where it may have come since."""
    return branches if upper is None or branches[0] is upper.branch else (upper.branch, *branches)
