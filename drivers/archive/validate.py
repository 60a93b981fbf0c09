"""The whole of an archive judged without writing a file: what `extract` would refuse, found when it is imported.

The same reader, policy and resolution of names as extraction, on a tree in memory instead of the disk. What only the
disk can refuse (no space, no extended attributes) is left to extraction.
"""

from __future__ import annotations

from drivers.archive import policy
from drivers.archive.errors import ArchiveError, shown
from drivers.archive.extract import Extracted
from drivers.archive.limits import DEFAULT, Limits
from drivers.archive.policy import Path, Step
from drivers.archive.reader import CHUNK, Entry, Kind, Reader, Source
from drivers.archive.walk import Escape, canonical

# A directory is the dictionary of its names, a symbolic link its target, anything else None.
_Node = dict[bytes, "_Node"] | bytes | None


def validate(stream: Source, *, limits: Limits = DEFAULT) -> Extracted:
    """Read the uncompressed tar `stream` to its last byte, as an archive for an empty root.

    ArchiveError: damaged, cut short, over a limit, followed by something, or asking for what extraction refuses.
    """
    tree = _Tree()
    size = entries = 0
    for entry in Reader(stream, limits):
        entries += 1
        size += entry.size if entry.kind is Kind.FILE else 0
        try:
            tree.add(entry, policy.admit(entry, limits))
        except Escape as escape:
            raise entry.refuse(f"{escape}; make the archive with tar -C DIRECTORY -c .") from None
        policy.kept_xattrs(entry)
    _read_padding(stream, limits)
    return Extracted(size, entries)


def _read_padding(stream: Source, limits: Limits) -> None:
    """The rest of the stream, which may only be zeros: a second archive there would silently be left out."""
    padding = 0
    while piece := stream.read(CHUNK):
        padding += len(piece)
        if piece.strip(b"\0"):
            raise ArchiveError("something follows the end of the archive; if it is several in one file, merge them")
        if padding > limits.padding:
            raise ArchiveError(f"more than {limits.padding} bytes of padding follow the end of the archive")


class _Tree:
    def __init__(self) -> None:
        self._root: dict[bytes, _Node] = {}

    def add(self, entry: Entry, step: Step) -> None:
        if step.opaque:
            self._directory(entry, step.path)
            return
        if not step.path:
            return
        parent = self._directory(entry, step.path[:-1])
        name = step.path[-1]
        if step.whiteout:
            return  # there is nothing below an empty root that did not come from this archive
        match entry.kind:
            case Kind.DIRECTORY:
                if not isinstance(parent.get(name), dict):
                    parent[name] = {}
            case Kind.SYMLINK:
                parent[name] = entry.linkname
            case Kind.HARDLINK:
                parent[name] = self._target(entry, step.target)
            case _:
                parent[name] = None

    def _target(self, entry: Entry, target: Path) -> bytes | None:
        parent = self._walk(target[:-1])
        if not isinstance(parent, dict) or target[-1] not in parent:
            raise entry.refuse(f"it is a hard link to {shown(entry.linkname)}, which does not exist")
        node = parent[target[-1]]
        if isinstance(node, dict):
            raise entry.refuse(f"it is a hard link to the directory {shown(entry.linkname)}")
        return node

    def _directory(self, entry: Entry, path: Path) -> dict[bytes, _Node]:
        """The directory `path`, made with its parents where missing, as extraction makes them."""
        node = self._walk(path, make=True)
        if not isinstance(node, dict):
            raise entry.refuse("a part of its name is a file and no directory")
        return node

    def _walk(self, path: Path, *, make: bool = False) -> _Node:
        """The node `path`, symbolic links resolved; None when it is missing, or a file is on the way."""
        node: _Node = self._root
        for part in path:
            if isinstance(node, dict):
                node = node.setdefault(part, {}) if make else node.get(part)
            if isinstance(node, bytes):
                return self._walk(canonical(path, self._readlink), make=make)
            if node is None:
                return None
        return node

    def _readlink(self, path: Path) -> bytes | None:
        node: _Node = self._root
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        return node if isinstance(node, bytes) else None
