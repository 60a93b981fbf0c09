"""The node table: one Node for each file the kernel holds a reference to. Guarded by Stack.lock.

A node's number is its st_ino, and once in its life it can be given a fresh one, for a kernel that is to take the file
for another; then both lead to it. It stays in the table while the kernel counts lookups on it, an operation holds it,
or a node in the table has a name in it: the kernel may forget the directory of one of a file's names and keep the file.

There may be millions, so a node has fields of its own only for what every node has; the rest is in `seldom`, and what
all files of a branch have in common is one object, the Source. A file costs about 250 bytes, of which 110 are the Node,
30 its number, 50 its name and 50 the table's.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, overload

from unionfs.union import identity
from unionfs.union.branch import Branch
from unionfs.union.errors import fail
from unionfs.union.identity import Identity, Origin, Source

T = TypeVar("T")

Name = tuple["Node", bytes]
Real = tuple[Branch, int, int]

# One object each.
_KINDS = {
    kind: kind
    for kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
}
_FORMAT = 0o170000  # S_IFMT

# Bytes of the table for each node in it, 100 at most unless it was larger once; then it is made anew, for a dict gives
# nothing back by itself.
_SPARSE = 800
_SMALL = 1 << 16


class _Seldom(Generic[T]):
    """A field of a Node that has its default in nearly all of them."""

    def __init__(self, default: T) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, node: None, owner: type) -> _Seldom[T]: ...
    @overload
    def __get__(self, node: Node, owner: type) -> T: ...
    def __get__(self, node: Node | None, owner: type) -> T | _Seldom[T]:
        if node is None:
            return self
        if node.seldom is None:
            return self._default
        return node.seldom.get(self._name, self._default)  # type: ignore[no-any-return]

    def __set__(self, node: Node, value: T) -> None:
        if value != self._default:
            if node.seldom is None:
                node.seldom = {}
            node.seldom[self._name] = value
        elif node.seldom is not None and node.seldom.pop(self._name, None) is not None and not node.seldom:
            node.seldom = None


class Node:
    """One file of the union.

    Immutable: ino, kind, origin. The others are guarded by Stack.lock:

    number   what the kernel is to call it: ino, or the fresh number.
    names    where the file is in the union, as (directory, name), the last resolved last: what is done to the file is
             done to that one, `name` in `parent`. A directory has at most one, the root none.
             Invariant: all names that were looked up and not removed since; with none left there is an orphan_fd.
    layers   of a directory: the branches that it merges, top first. Empty once removed.
    source, inode  of the file in that branch, or in a directory's top one: they tell a second file with the same number
             apart, and are where the origin is known from unless this is a copy.
    pseudo_link  key of the pseudo-link through which other names of a copied-up hard link find it, or None.
    protection   of a copy: the inode flags of its original that forbid to change it (union/protection).
    orphan_fd    descriptor that keeps the bytes of a file without a known name (unlinked, still referenced), or -1.
    lookups  references: the kernel's lookups, the operations that hold it, the names in it.
    copying  a copy-up of its data is under way without the lock.
    inside   of a directory: how many of its lookups are names in it, which the kernel's FORGET cannot take.
    seldom   the fields that few have, by name; None for most.
    """

    inside: int  # a slot of Directory

    __slots__ = ("ino", "inode", "kind", "layers", "lookups", "name", "parent", "seldom", "source")

    def __init__(self, ino: int, source: Source, entry: os.stat_result) -> None:
        self.ino = ino
        self.kind = _KINDS[entry.st_mode & _FORMAT]
        self.source = source
        inode = entry.st_ino
        self.inode = ino if ino == inode else inode  # one object
        self.lookups = 0
        self.parent: Node | None = None
        self.name = b""
        self.layers: tuple[Branch, ...] = ()
        self.seldom: dict[str, Any] | None = None

    origin_of_copy = _Seldom[Origin | None](None)
    several_names = _Seldom[dict[Name, None] | None](None)
    fresh_number = _Seldom(0)
    pseudo_link = _Seldom[bytes | None](None)
    protection = _Seldom(0)
    orphan_fd = _Seldom(-1)
    copying = _Seldom(False)

    def forgettable(self, count: int) -> int:
        """So many of `count` lookups can be the kernel's. It counts rightly; if it did not, what is known by its place
        in this directory would lose it."""
        return min(count, self.lookups - self.inside) if self.kind == stat.S_IFDIR else count

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def branch(self) -> Branch:
        """Of what is not a directory: the branch that holds the bytes now."""
        return self.source.branch

    @property
    def is_upper(self) -> bool:
        """Whether changes to it go to a writable branch already."""
        if self.kind == stat.S_IFDIR:
            return bool(self.layers) and self.layers[0].writable
        return self.source.branch.writable

    @property
    def is_pure_upper(self) -> bool:
        """Whether a directory is in a writable branch alone (overlayfs's word)."""
        return len(self.layers) == 1 and self.layers[0].writable

    def is_(self, entry: os.stat_result) -> bool:
        """Whether this is the file with the status `entry`, as far as its file system lets one tell."""
        if entry.st_mode & _FORMAT != self.kind:
            return False
        source = self.source
        return (entry.st_ino == self.inode and entry.st_dev == source.device) or not source.lasting

    @property
    def number(self) -> int:
        return self.fresh_number or self.ino

    @property
    def origin(self) -> Origin:
        return self.origin_of_copy or self.source.origin(self.inode)

    @property
    def names(self) -> tuple[Name, ...]:
        several = self.several_names
        if several is not None:
            return tuple(several)
        return () if self.parent is None else ((self.parent, self.name),)

    def add_name(self, parent: Node, name: bytes) -> bool:
        """Note the name that was resolved last; True if it is a new one."""
        if self.parent is parent and self.name == name:
            return False
        if self.parent is None:
            self.parent, self.name = parent, name
            return True
        several = self.several_names or {(self.parent, self.name): None}
        known = several.pop((parent, name), self)
        several[parent, name] = None
        self.several_names = several
        self.parent, self.name = parent, name
        return known is self

    def remove_name(self, parent: Node, name: bytes) -> bool:
        """False if it was not known."""
        several = self.several_names
        if several is None:
            if self.parent is not parent or self.name != name:
                return False
            self.parent, self.name = None, b""
            return True
        if (parent, name) not in several:
            return False
        del several[parent, name]
        self.parent, self.name = next(reversed(several))
        if len(several) == 1:
            self.several_names = None
        return True

    def __repr__(self) -> str:
        return f"<node {self.ino} {oct(self.kind)} {self.name!r}>"


class Directory(Node):
    __slots__ = ("inside",)

    def __init__(self, ino: int, source: Source, entry: os.stat_result) -> None:
        super().__init__(ino, source, entry)
        self.inside = 0


class NodeTable:
    def __init__(self, root: Node, identity_: Identity) -> None:
        self.root = root
        self._identity = identity_
        self._nodes = {identity.ROOT: root}
        self._collided: dict[Real, int] = {}
        self._renumbered = 0

    def __len__(self) -> int:
        return len(self._nodes) - self._renumbered

    def __iter__(self) -> Iterator[Node]:
        return (node for number, node in self._nodes.items() if number == node.ino)

    @property
    def any_collided(self) -> bool:
        """Whether a file has another number than its own, for that was taken."""
        return bool(self._collided)

    def get(self, number: int) -> Node:
        """The node, by its st_ino or its fresh number, or ESTALE: the kernel never names one it was not given."""
        try:
            return self._nodes[number]
        except KeyError:
            fail(errno.ESTALE, b"%d" % number)

    def find(self, number: int) -> Node | None:
        return self._nodes.get(number)

    def of_file(self, ino: int, source: Source, entry: os.stat_result) -> tuple[Node, bool]:
        """The node of the file `entry`, which is in `source` and goes by the number `ino`, unless another live file has
        that number: it then gets one of its own. (node, whether it is new)."""
        if self._collided:
            ino = self._collided.get((source.branch, source.device, entry.st_ino), ino)
        node = self._nodes.get(ino)
        if node is not None:
            if node.inode == entry.st_ino and node.source is source and node.kind == entry.st_mode & _FORMAT:
                return node, False
            while (ino := self._identity.spare_number()) in self._nodes:
                pass
            self._collided[source.branch, source.device, entry.st_ino] = ino
        new = Directory if entry.st_mode & _FORMAT == stat.S_IFDIR else Node
        node = self._nodes[ino] = new(ino, source, entry)
        return node, True

    def renumber(self, node: Node) -> int:
        """Give the node a fresh number, if it has none yet; its number."""
        if not node.fresh_number:
            node.fresh_number = self._identity.fresh_number()
            self._nodes[node.fresh_number] = node
            self._renumbered += 1
        return node.fresh_number

    def set_real(self, node: Node, branch: Branch, entry: os.stat_result) -> None:
        """The node's file is its copy in the writable branch `branch`, `entry`, from now on."""
        node.origin_of_copy = node.origin
        collision = self._collided.pop(_real(node), None)
        node.source = self._identity.work_source(branch, entry.st_dev)
        node.inode = entry.st_ino
        if collision is not None:
            self._collided[_real(node)] = collision
        self._identity.copied(branch, entry.st_ino)

    def drop(self, node: Node) -> bool:
        """Take an unreferenced node out of the table; False if it is still referenced or already out."""
        if node.lookups > 0 or node is self.root or self._nodes.get(node.ino) is not node:
            return False
        del self._nodes[node.ino]
        if node.fresh_number:
            del self._nodes[node.fresh_number]
            self._renumbered -= 1
        if self._collided:
            self._collided.pop(_real(node), None)
        if self._nodes.__sizeof__() > _SMALL + _SPARSE * len(self._nodes):
            self._nodes = dict(self._nodes)
        return True


def _real(node: Node) -> Real:
    """Which file of which branch the node is now."""
    return node.source.branch, node.source.device, node.inode
