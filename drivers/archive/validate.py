"""The whole of an archive judged without writing a file: what `extract` would refuse, found when it is imported.

The same reader, policy and resolution of names as extraction, on a tree in memory instead of the disk. What only the
disk can refuse (no space, no extended attributes) is left to extraction.
"""

from __future__ import annotations

from drivers.archive import policy
from drivers.archive.errors import ArchiveError, Refused, shown
from drivers.archive.extract import Extracted
from drivers.archive.limits import DEFAULT, Limits, Spent
from drivers.archive.policy import Path, Step
from drivers.archive.pseudolinks import hidden_name
from drivers.archive.reader import CHUNK, Entry, Kind, Reader, Source
from drivers.archive.tree import FILE, Directory, Names, Tree
from drivers.archive.walk import Link, canonical


def validate(stream: Source, *, limits: Limits = DEFAULT, upper: bool = False) -> Extracted:
    """Read the uncompressed tar `stream` to the end of the archive, as one for an empty root; an `upper` one is for a
    root of which nothing is known, like that of a layer on others: what its hard links lead to may be there.

    ArchiveError: damaged, cut short, over a limit, or asking for what extraction refuses.
    """
    tree = _Tree(limits, upper=upper)
    size = entries = 0
    for entry in Reader(stream, limits):
        entries += 1
        step = policy.admit(entry, limits)
        if step is None:
            continue
        try:
            tree.add(entry, step)
        except Refused as refused:
            raise entry.refuse(str(refused)) from None
        if not (step.opaque or step.whiteout):
            policy.kept_xattrs(entry)
            size += entry.size if entry.kind is Kind.FILE else 0
    return Extracted(size, entries)


def read_padding(stream: Source, *, limits: Limits = DEFAULT) -> None:
    """The rest of the stream, which may only be zeros: a second archive there would silently be left out."""
    padding = 0
    while piece := stream.read(CHUNK):
        padding += len(piece)
        if piece.strip(b"\0"):
            raise ArchiveError("something follows the end of the archive; if it is several in one file, merge them")
        if padding > limits.padding:
            raise ArchiveError(f"more than {limits.padding} bytes of padding follow the end of the archive")


class _Tree:
    """What extraction would have made so far."""

    def __init__(self, limits: Limits, *, upper: bool) -> None:
        self._tree = Tree(limits)
        self._spent = Spent(limits)
        self._upper = upper
        self._overlay_whiteouts = Names(limits)
        self._pseudo_links: Path = (hidden_name(),)

    def add(self, entry: Entry, step: Step) -> None:
        if step.opaque:
            self._directory(entry, step.path)
            return
        if step.pseudo and entry.kind is Kind.FILE:
            self._tree.put(self._directory(entry, self._pseudo_links), step.pseudo, FILE)
            return
        if not step.path:
            return
        parent = self._directory(entry, step.path[:-1])
        name = step.path[-1]
        if step.whiteout:  # there is nothing below an empty root that did not come from this archive
            if entry.kind is Kind.CHAR:
                self._overlay_whiteouts.add(step.path)
            return
        match entry.kind:
            case Kind.DIRECTORY:
                self._tree.put_directory(parent, name)
            case Kind.SYMLINK:
                self._tree.put(parent, name, entry.linkname)
            case Kind.HARDLINK:
                if (target := self._target(entry, step)) is None:
                    self._overlay_whiteouts.add(step.path)
                else:
                    self._tree.put(parent, name, target)
            case _:
                self._tree.put(parent, name, FILE)

    def _target(self, entry: Entry, step: Step) -> bytes | None:
        """What the hard link's name then holds; None when it is a link to overlayfs's whiteout."""
        target = (*self._pseudo_links, step.pseudo) if step.pseudo else step.target
        parent = self._walk(target[:-1])
        node = parent.get(target[-1]) if target and isinstance(parent, Directory) else None
        if node is None and target in self._overlay_whiteouts:
            return None
        if node is None and self._upper and not step.pseudo:
            return FILE
        if node is None:
            raise entry.refuse(f"it is a hard link to {shown(entry.linkname)}, which does not exist")
        if not isinstance(node, bytes):
            raise entry.refuse(f"it is a hard link to the directory {shown(entry.linkname)}")
        return node

    def _directory(self, entry: Entry, path: Path) -> Directory:
        """The directory `path`, made with its parents where missing, as extraction makes them."""
        node = self._walk(path, make=True)
        if not isinstance(node, Directory):
            raise entry.refuse("a part of its name is a file and not a directory")
        return node

    def _walk(self, path: Path, *, make: bool = False) -> Directory | bytes | None:
        """The directory `path`, symbolic links resolved; FILE when one is on the way, None when it is missing."""
        self._spent.look(len(path))
        node = self._tree.directory(path, make=make)
        if not isinstance(node, bytes) or node == FILE:
            return node
        return self._tree.directory(canonical(path, self._first_link, self._spent), make=make)

    def _first_link(self, path: Path) -> Link | None:
        node, length = self._tree.reach(path)
        return (length, node) if isinstance(node, bytes) and node != FILE else None
