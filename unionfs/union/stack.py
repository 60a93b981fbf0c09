"""The state of one union, and the merge of one name over its branches.

Everything here but `tell_changes` is called with `Stack.lock` held (the lock order, and who lets go of it, are in the
package's docstring).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator, Sequence

from unionfs.union import identity, opaque, times
from unionfs.union.adopt import Adoption, Held
from unionfs.union.branch import Branch
from unionfs.union.directories import DirectoryCache
from unionfs.union.errors import fail
from unionfs.union.identity import Identity
from unionfs.union.nodes import Directory, Node, NodeTable
from unionfs.union.numbers import Xino
from unionfs.union.pseudolink import PseudoLinks
from unionfs.union.spare import Spare
from unionfs.union.waiting import Waiting

# Names kept in memory over all cached directories: about 100 bytes each.
_MOST_NAMES = 1 << 18


def tell_nobody(number: int) -> None:
    pass


class Stack(Adoption):
    """What names are (`resolve`), the nodes of their files (`adopt`), and what changes about both.

    `lock` guards the nodes and their fields, `identity`, `pseudo_links`, `outlived`, `directories`, `spare` and
    `_missing`. `held` is of the calling thread. The others are immutable, but for `_tell`, which is set once.
    """

    def __init__(
        self, branches: Sequence[Branch], *, volatile: bool = False, xino: Xino = "auto", waiting: Waiting
    ) -> None:
        """Raises OSError: EINVAL for no branches or a writable branch that is not on top; whatever cleaning the work
        area gives."""
        if not branches:
            fail(errno.EINVAL, why="a union needs at least one branch")
        for branch in branches[1:]:
            if branch.writable:
                fail(errno.EINVAL, branch.path, "only the top branch can be writable")
        self.branches = list(branches)
        self.upper_branch = self.branches[0] if self.branches[0].writable else None
        self.writable = self.upper_branch is not None
        self.volatile = volatile
        self.waiting = waiting
        self._tell: Callable[[int], None] = tell_nobody
        self.lock = threading.Lock()
        self.held = Held()
        self.settled = threading.Condition(self.lock)  # a copy-up finished or failed
        self.identity = Identity(self.branches, xino)
        self.pseudo_links = PseudoLinks(self.branches)
        self.forgotten = None
        self.outlived: list[tuple[Node, bytes]] = []  # see `outlived`
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = max(16, min(4096, descriptors // 3))
        self.directories = DirectoryCache(self.branches, most_directories=most, most_names=_MOST_NAMES)
        self.spare = Spare(descriptors)
        for branch in self.branches:
            if branch.writable:
                branch.clean_work_area()
                self.pseudo_links.sweep(branch)
                if not self.pseudo_links.any_in(branch) and self.directories.root(branch).is_bare():
                    self.identity.know_copies(branch)
        self.nodes = NodeTable(self._root(), self.identity)
        for branch in self.branches:
            branch.root_changed = lambda: self.changed(self.nodes.root)
        self._missing = None

    def _root(self) -> Node:
        top = self.branches[0]
        entry = os.fstat(top.fd)
        root = Directory(identity.ROOT, self.identity.source(top, top.fd, b".", entry), entry)
        layers = []
        for branch in self.branches:
            layers.append(branch)
            if opaque.is_opaque(branch.fd, b"."):
                break
        root.layers = tuple(layers)
        return root

    @contextlib.contextmanager
    def unlocked(self) -> Iterator[None]:
        """Let go of the lock for slow work; what was looked up before must be looked up again."""
        self.lock.release()
        try:
            yield
        finally:
            self.lock.acquire()

    # What nobody asked for by name, and yet changes what is known of a file.

    def tell_changes_to(self, forget_attributes: Callable[[int], None]) -> None:
        self._tell = forget_attributes

    def changed(self, node: Node) -> None:
        """Attributes of `node` have changed of which whoever keeps them cannot know by what he asked for: a copy has
        its own ctime and size, and its directory another. He is told when the operation ends, before his answer."""
        self.held.changed[node.ino] = None
        self.held.changed[node.number] = None

    def tell_changes(self) -> None:
        """Without the lock: the kernel may wait for an inode that it is about to drop (fuse_ilookup() of
        fs/fuse/inode.c), and that for pages which we have been asked to read."""
        changed, self.held.changed = self.held.changed, {}
        for number in changed:
            self._tell(number)

    @contextlib.contextmanager
    def unseen(self, node: Node) -> Iterator[int]:
        """Around a change in the writable branch's part of a directory that the union does not show: its descriptor."""
        directory = self.upper(node)
        branch, fd = directory.branch, directory.fd
        try:
            with times.kept(fd):
                if branch.confined:
                    with branch.permitted(fd):
                        yield fd
                else:
                    yield fd
        finally:
            self.changed(node)

    def copied(self, node: Node, branch: Branch, entry: os.stat_result, mode: int) -> None:
        """The node's file is its copy in the writable branch `branch`, `entry`, from now on, with this `mode`."""
        self.nodes.set_real(node, branch, entry)
        self.identity.forget(branch, node.inode)
        self.remember_origin(node, mode)
        self.changed(node)

    def remember_origin(self, node: Node, mode: int) -> None:
        """Where the file, of this `mode`, has no attribute that can be read: its owner may not, or it is none of the
        kinds that can have one (xattr(7))."""
        readable = mode & stat.S_IRUSR and node.kind in (stat.S_IFREG, stat.S_IFDIR)
        if not readable and node.origin_of_copy is not None and node.branch.confined:
            self.identity.remember(node.branch, node.inode, node.origin_of_copy)

    def reconsider(self, node: Node) -> None:
        """A directory's mode has changed: what it merges may not have been for the server to see, nor what is in it."""
        if node.branch.confined and node.parent is not None:
            self.directories.forget(node)
            self._missing = None
            found = self.resolve(node.parent, node.name)
            if found is not None:
                node.layers = found.layers

    def close(self) -> None:
        """Let go of the branches, before anything that takes longer: somebody may want to unmount them."""
        self.directories.clear()
        for node in self.nodes:
            if node.seldom is not None:
                self.close_orphan(node)
        self.pseudo_links.close()
        for branch in self.branches:
            branch.close()
        self.spare.give()
