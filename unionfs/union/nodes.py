"""The node table: one Node for each file the kernel holds a reference to. Guarded by Stack.lock.

A node's number is its st_ino. It stays in the table while the kernel counts lookups on it or an operation holds it.
The kernel keeps a directory as long as anything below it (a dentry holds its parent), so a node's parents are in the
table too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from unionfs.union import identity
from unionfs.union.identity import Origin

Name = tuple["Node", bytes]


class Node:
    """One file of the union.

    Immutable: ino, kind, origin. The others are guarded by Stack.lock:

    names    where the file is in the union, as (directory, name), the last resolved last: what is done to the file is
             done to that one. A directory has at most one, the root none.
             Invariant: all names that were looked up and not removed since; with none left there is an orphan_fd.
    layers   of a directory: indexes of the branches that it merges, top first. Empty once removed.
    branch   of other files: index of the branch that holds the bytes now.
    real     (st_dev, st_ino) of the top branch's file; tells a second file with the same number apart.
    pseudo_link  key of the pseudo-link through which other names of a copied-up hard link find it, or None.
    orphan_fd    descriptor that keeps the bytes of a file without a known name (unlinked, still referenced), or -1.
    lookups  references: the kernel's lookups and the operations that hold it.
    copying  a copy-up of its data is under way without the lock.
    """

    __slots__ = (
        "branch", "copying", "ino", "kind", "layers", "lookups", "names", "origin", "orphan_fd", "pseudo_link", "real",
    )  # fmt: skip

    def __init__(self, ino: int, kind: int, origin: Origin, real: tuple[int, int]) -> None:
        self.ino = ino
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

    def add_name(self, parent: Node, name: bytes) -> None:
        self.names.pop((parent, name), None)
        self.names[parent, name] = None

    def discard_name(self, parent: Node, name: bytes) -> None:
        self.names.pop((parent, name), None)

    def __repr__(self) -> str:
        return f"<node {self.ino} {oct(self.kind)} {self.name!r}>"


class NodeTable:
    def __init__(self, root: Node) -> None:
        self.root = root
        self._nodes = {identity.ROOT: root}
        self._collided: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, ino: int) -> Node:
        """The node, or ESTALE: the kernel never names a number it was not given."""
        try:
            return self._nodes[ino]
        except KeyError:
            raise OSError(116, os.strerror(116), str(ino)) from None

    def find(self, ino: int) -> Node | None:
        return self._nodes.get(ino)

    def add(self, node: Node) -> None:
        self._nodes[node.ino] = node

    def collided(self, real: tuple[int, int]) -> int | None:
        """The number that a file got because its own was taken by another live file."""
        return self._collided.get(real)

    def record_collision(self, real: tuple[int, int], ino: int) -> None:
        self._collided[real] = ino

    def drop(self, node: Node) -> bool:
        """Take an unreferenced node out of the table; False if it is still referenced or already out."""
        if node.lookups > 0 or node is self.root or self._nodes.get(node.ino) is not node:
            return False
        del self._nodes[node.ino]
        self._collided.pop(node.real, None)
        return True
