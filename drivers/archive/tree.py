"""The names that an archive has brought so far, with the directories that lead to them: a small tree in memory.

One name of an archive can lead through a thousand directories that nothing else names. So directories that have one
entry each are kept as the bytes of their names (a radix tree): memory is linear in the entries and in the bytes of the
different names, and `Limits` holds both. Names are counted when they are new, and not taken off when they go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from drivers.archive.errors import ArchiveError
from drivers.archive.limits import Limits
from drivers.archive.policy import Path

FILE = b""


class Directory(dict[bytes, "Node"]):
    """The entries by name. `mtime_ns` is None until an entry of the archive says it."""

    __slots__ = ("mtime_ns",)

    def __init__(self, *entries: tuple[bytes, Node]) -> None:
        super().__init__(entries)
        self.mtime_ns: int | None = None


class Chain:
    """A directory with one entry, which is a directory with one entry, and so on: their names, and the last of them."""

    __slots__ = ("end", "names")

    def __init__(self, names: Sequence[bytes], end: Directory) -> None:
        self.names = b"/".join(names)
        self.end = end


# A directory in one of its two forms, the target of a symbolic link, or FILE for anything else.
Node = Directory | Chain | bytes


class Tree:
    """`root` is its top directory. Whatever adds names may raise ArchiveError: the tree is over one of the limits."""

    def __init__(self, limits: Limits) -> None:
        self.root = Directory()
        self._limits = limits
        self._entries = self._bytes = 0

    def reach(self, path: Path) -> tuple[Node, int]:
        """Where the directories of `path` lead, and how many of its names lead there: all, or up to what is missing,
        a link or a file. Not to be changed: it may be a copy."""
        node: Node = self.root
        at = 0
        while at < len(path) and not isinstance(node, bytes):
            if isinstance(node, Chain):
                names = node.names.split(b"/")
                along = _common(names, path[at:])
                at += along
                if along < len(names):
                    return Chain(names[along:], node.end), at
                node = node.end
            elif (below := node.get(path[at])) is not None:
                node, at = below, at + 1
            else:
                break
        return node, at

    def find(self, path: Path) -> Node | None:
        """What has this name, None if nothing has. Not to be changed."""
        node, length = self.reach(path)
        return node if length == len(path) else None

    def directory(self, path: Path, *, make: bool = False) -> Directory | bytes | None:
        """The directory of that name; the link's target, or FILE, if one is on the way or has the name; None if there
        is none. With `make` it is made, and so is what is missing on the way."""
        here = self.root
        at = 0
        while at < len(path):
            name = path[at]
            at += 1
            below = here.get(name)
            if isinstance(below, bytes):
                return below
            if isinstance(below, Directory):
                here = below
            elif below is not None:
                here, along = self._part(here, name, below, path[at:])
                at += along
            elif not make:
                return None
            else:
                self._count(path[at - 1 :])
                end = Directory()
                here[name] = _chained(path[at:], end)
                return end
        return here

    def _part(self, here: Directory, name: bytes, chain: Chain, path: Path) -> tuple[Directory, int]:
        """Have the chain `name` end where `path` leaves it. The directory there, and how many names away it is."""
        names = chain.names.split(b"/")
        along = _common(names, path)
        if along == len(names):
            return chain.end, along
        parting = Directory((names[along], _chained(names[along + 1 :], chain.end)))
        here[name] = _chained(names[:along], parting)
        return parting, along

    def put(self, directory: Directory, name: bytes, node: bytes) -> None:
        """A file, or a link with its target, in the place of whatever had the name."""
        self._count(() if name in directory else (name,), len(node))
        directory[name] = node

    def put_directory(self, directory: Directory, name: bytes) -> Directory:
        """The directory of that name, in the place of whatever else had it."""
        node = directory.get(name)
        if isinstance(node, Directory):
            return node
        if isinstance(node, Chain):
            return self._part(directory, name, node, ())[0]
        self._count(() if node is not None else (name,))
        directory[name] = made = Directory()
        return made

    def directories(self) -> Iterator[tuple[bytes, Directory]]:
        """All of them but those that only lead to one other, each with its path; b"" is the root's."""
        pending: list[tuple[bytes, bytes, Directory | Chain]] = [(b"", b"", self.root)]
        while pending:
            above, name, node = pending.pop()
            if isinstance(node, Chain):
                name, node = name + b"/" + node.names, node.end
            path = above + b"/" + name if above else name
            yield path, node
            pending += [(path, name, below) for name, below in node.items() if not isinstance(below, bytes)]

    def _count(self, names: Sequence[bytes], more: int = 0) -> None:
        self._entries += len(names)
        self._bytes += sum(map(len, names)) + more
        if self._entries > self._limits.entries:
            raise ArchiveError(
                f"the archive has more than {self._limits.entries} entries, directories on their way counted"
            )
        if self._bytes > self._limits.names:
            raise ArchiveError(
                f"the names and link targets in the archive are over the {self._limits.names} bytes that are allowed"
            )


class Names:
    """A set of paths, none of which is below another, within the limits of a tree."""

    def __init__(self, limits: Limits) -> None:
        self._tree = Tree(limits)

    def add(self, path: Path) -> None:
        """ArchiveError."""
        directory = self._tree.directory(path[:-1], make=True)
        if isinstance(directory, Directory):
            self._tree.put(directory, path[-1], FILE)

    def __contains__(self, path: Path) -> bool:
        return self._tree.find(path) == FILE


def entries(node: Directory | Chain) -> Directory:
    """The entries of a directory in either form, not to be changed."""
    if isinstance(node, Directory):
        return node
    first, _, rest = node.names.partition(b"/")
    return Directory((first, _chained(rest.split(b"/") if rest else (), node.end)))


def _chained(names: Sequence[bytes], end: Directory) -> Directory | Chain:
    return Chain(names, end) if names else end


def _common(names: Sequence[bytes], path: Sequence[bytes]) -> int:
    """How many names at the beginning are the same."""
    count = 0
    for name, part in zip(names, path, strict=False):
        if name != part:
            break
        count += 1
    return count
