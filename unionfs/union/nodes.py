"""The node table: one Node for each file the kernel holds a reference to. Guarded by Stack.lock.

A node's number is its st_ino, and once in its life it can be given a fresh one, for a kernel that is to take the file
for another; then both lead to it. It stays in the table while the kernel counts lookups on it, an operation holds it,
or a node in the table has a name in it: the kernel may forget the directory of one of a file's names and keep the file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from unionfs.union import identity
from unionfs.union.errors import fail
from unionfs.union.identity import Origin

Name = tuple["Node", bytes]
Real = tuple[int, int, int]


class Node:
    """One file of the union.

    Immutable: ino, kind, origin. The others are guarded by Stack.lock:

    number   what the kernel is to call it: ino, or the fresh number.
    names    where the file is in the union, as (directory, name), the last resolved last: what is done to the file is
             done to that one. A directory has at most one, the root none.
             Invariant: all names that were looked up and not removed since; with none left there is an orphan_fd.
    layers   of a directory: indexes of the branches that it merges, top first. Empty once removed.
    branch   of other files: index of the branch that holds the bytes now.
    real     the top branch's index and its file's st_dev and st_ino; tells a second file with the same number apart.
    pseudo_link  key of the pseudo-link through which other names of a copied-up hard link find it, or None.
    orphan_fd    descriptor that keeps the bytes of a file without a known name (unlinked, still referenced), or -1.
    lookups  references: the kernel's lookups, the operations that hold it, the names in it.
    copying  a copy-up of its data is under way without the lock.
    """

    __slots__ = (
        "branch", "copying", "ino", "kind", "layers", "lookups", "names", "number", "origin", "orphan_fd",
        "pseudo_link", "real",
    )  # fmt: skip

    def __init__(self, ino: int, kind: int, origin: Origin, real: Real) -> None:
        self.ino = ino
        self.number = ino
        self.kind = kind
        self.origin = origin
        self.real = real
        self.lookups = 0
        self.names: dict[Name, None] = {}
        self.layers: tuple[int, ...] = ()
        self.branch = -1
        self.pseudo_link: bytes | None = None
        self.orphan_fd = -1
        self.copying = False

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def parent(self) -> Node | None:
        """The directory that holds the last resolved name; None for the root and for orphans."""
        return next(reversed(self.names))[0] if self.names else None

    @property
    def name(self) -> bytes:
        return next(reversed(self.names))[1] if self.names else b""

    def __repr__(self) -> str:
        return f"<node {self.ino} {oct(self.kind)} {self.name!r}>"


class NodeTable:
    def __init__(self, root: Node) -> None:
        self.root = root
        self._nodes = {identity.ROOT: root}
        self._collided: dict[Real, int] = {}
        self._renumbered = 0

    def __len__(self) -> int:
        return len(self._nodes) - self._renumbered

    def __iter__(self) -> Iterator[Node]:
        return (node for number, node in self._nodes.items() if number == node.ino)

    def get(self, number: int) -> Node:
        """The node, by its st_ino or its fresh number, or ESTALE: the kernel never names one it was not given."""
        try:
            return self._nodes[number]
        except KeyError:
            fail(errno.ESTALE, b"%d" % number)

    def find(self, number: int) -> Node | None:
        return self._nodes.get(number)

    def add(self, node: Node) -> None:
        self._nodes[node.ino] = node

    def renumber(self, node: Node, number: int) -> None:
        """Give a node that has none the fresh number `number`, which no node has."""
        node.number = number
        self._nodes[number] = node
        self._renumbered += 1

    def collided(self, real: Real) -> int | None:
        """The number that a file got because its own was taken by another live file."""
        return self._collided.get(real)

    def record_collision(self, real: Real, ino: int) -> None:
        self._collided[real] = ino

    def set_real(self, node: Node, entry: os.stat_result) -> None:
        """The node's file in the writable branch is `entry` from now on."""
        real = (0, entry.st_dev, entry.st_ino)
        if self._collided.pop(node.real, None) is not None:
            self._collided[real] = node.ino
        node.real = real

    def drop(self, node: Node) -> bool:
        """Take an unreferenced node out of the table; False if it is still referenced or already out."""
        if node.lookups > 0 or node is self.root or self._nodes.get(node.ino) is not node:
            return False
        del self._nodes[node.ino]
        if node.number != node.ino:
            del self._nodes[node.number]
            self._renumbered -= 1
        self._collided.pop(node.real, None)
        return True
