"""The state of one union, and the merge of one name over its branches.

Everything here is called with `Stack.lock` held (the lock order is in the package's docstring).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from unionfs.linux import files
from unionfs.union import form, identity, opaque, times
from unionfs.union.branch import Branch
from unionfs.union.directories import BranchDirectory, DirectoryCache
from unionfs.union.errors import fail
from unionfs.union.identity import Identity, Origin, Source
from unionfs.union.nodes import Directory, Node, NodeTable
from unionfs.union.numbers import Xino
from unionfs.union.pseudolink import PseudoLinks
from unionfs.union.spare import Spare
from unionfs.union.waiting import Waiting

# Names kept in memory over all cached directories: about 100 bytes each.
_MOST_NAMES = 1 << 18

_FORMAT = 0o170000  # S_IFMT


class Found(NamedTuple):
    """What a name is: the top branch that has it, its status there, and the branches a directory merges."""

    branch: Branch
    entry: os.stat_result
    layers: tuple[Branch, ...]

    @property
    def is_pure_upper(self) -> bool:
        """As of a Node."""
        return len(self.layers) == 1 and self.layers[0].writable

    @property
    def is_directory(self) -> bool:
        return bool(self.layers)


def tell_nobody(number: int) -> None:
    pass


class _Held(threading.local):
    """The nodes that the operation of this thread holds, and the numbers of those that it has changed."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.changed: dict[int, None] = {}


class Stack:
    """Branches top first. `upper_branch` is the writable one, if any is: the top one."""

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
        self.held = _Held()
        self.settled = threading.Condition(self.lock)  # a copy-up finished or failed
        self.identity = Identity(self.branches, xino)
        self.pseudo_links = PseudoLinks(self.branches)
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
        self._missing: tuple[Node, bytes] | None = None

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

    def require_writable(self) -> None:
        if not self.writable:
            fail(errno.EROFS)

    def upper_for(self, parent: Node | None) -> Branch:
        """The writable branch for what is made in `parent`, or copied up in it (None: for what has no name). EROFS."""
        if self.upper_branch is None:
            fail(errno.EROFS)
        return self.upper_branch

    # One name over the branches.

    def resolve(self, parent: Node, name: bytes, *, among: Sequence[Branch] | None = None) -> Found | None:
        """What `name` is in the directory `parent`, or None. `among` are the branches that have it or may hide it,
        where that is known."""
        layers = parent.layers if among is None else among
        top = self._top(parent, name, layers)
        if top is None:
            return None
        branch, entry = top
        if entry.st_mode & _FORMAT != stat.S_IFDIR:
            return Found(branch, entry, ())
        if branch is layers[-1]:
            return Found(branch, entry, (branch,))
        merged = self._known(parent, name, branch, entry) or self._merged(parent, name, branch, layers)
        return Found(branch, entry, merged)

    def below(self, parent: Node, name: bytes) -> os.stat_result | None:
        """The status of what `name` would be without the writable branch's entry and whiteout."""
        top = self._top(parent, name, parent.layers[1:] if parent.is_upper else parent.layers)
        return None if top is None else top[1]

    def _top(self, parent: Node, name: bytes, layers: Sequence[Branch]) -> tuple[Branch, os.stat_result] | None:
        """The first of the branches that has `name`, and its status there; None if there is none, or it is hidden."""
        if name.startswith(form.PREFIX):
            return None
        for branch in layers:
            directory = self.directories.get(parent, branch)
            entry = directory.stat(name)
            if entry is not None:
                if entry.st_mode & _FORMAT == stat.S_IFCHR and form.is_overlay_whiteout(entry):
                    return None
                return branch, entry
            if branch is not layers[-1] and directory.hides(name):
                return None
        return None

    def _known(self, parent: Node, name: bytes, top: Branch, entry: os.stat_result) -> tuple[Branch, ...] | None:
        """The branches that a directory merges, if it was resolved before; None if that is not to be seen at once."""
        source = self.identity.sources[top].get(entry.st_dev)
        if source is None or source.copies is None or entry.st_ino in source.copies:
            return None
        node = self.nodes.find(source.number(entry.st_ino))
        if node is None or node.parent is not parent or node.name != name or node.layers[:1] != (top,):
            return None
        return node.layers if node.source is source and node.inode == entry.st_ino else None

    def _merged(self, parent: Node, name: bytes, top: Branch, layers: Sequence[Branch]) -> tuple[Branch, ...]:
        """The branches that the directory `name` merges, whose top one is `top`: with those that shine through."""
        merged = [top]
        directory = self.directories.get(parent, top)
        for branch in layers[layers.index(top) + 1 :]:
            if directory.hides(name):
                break
            directory = self.directories.get(parent, branch)
            lower = directory.stat(name)
            if lower is not None:
                if not stat.S_ISDIR(lower.st_mode):
                    break
                if opaque.is_opaque(self.directories.get(parent, merged[-1]).fd, name):
                    break
                merged.append(branch)
        return tuple(merged)

    def missing(self, parent: Node, name: bytes) -> None:
        """Note that there is no such name: who makes one looks it up first (lookup_open(), fs/namei.c)."""
        self._missing = parent, name

    def is_missing(self, parent: Node, name: bytes) -> bool:
        """Whether there is no such name. No branch is asked for the one that was looked up last, once."""
        if self._missing == (parent, name):
            self._missing = None
            return True
        return self.resolve(parent, name) is None

    def resolve_existing(self, parent: Node, name: bytes) -> Found:
        found = self.resolve(parent, name)
        if found is None:
            fail(errno.ENOENT, name)
        return found

    # From a name to its node.

    def adopt(self, parent: Node, name: bytes, found: Found) -> Node:
        """The node of a name just resolved, held by this operation; a new one if the file had none."""
        node = self.node_at(parent, name, found)
        self._hold(node)
        return node

    def node_at(self, parent: Node, name: bytes, found: Found) -> Node:
        """The node of a name just resolved, which the caller references at once."""
        branch, entry, layers = found
        source = self.identity.sources[branch].get(entry.st_dev)
        if source is None:
            source = self.identity.new_source(branch, self.directories.get(parent, branch).fd, name, entry)
        hard_linked = not layers and entry.st_nlink > 1
        if source.copies is None or entry.st_ino in source.copies or (hard_linked and self.pseudo_links):
            node = self._copy_at(parent, name, found, source)
        else:
            node, _ = self.nodes.of_file(source.number(entry.st_ino), source, entry)
        if layers:
            node.layers = parent.layers if layers == parent.layers else layers
        self.give_name(node, parent, name)
        return node

    def _copy_at(self, parent: Node, name: bytes, found: Found, source: Source) -> Node:
        """The node of what may be a copy, or a hard link whose file was copied up under another name."""
        branch, entry, layers = found
        recorded: Origin | None = None
        protection = 0
        link: bytes | None = None
        if self.identity.may_hold_copies(branch) or self.pseudo_links.any_in(branch):
            path = files.fd_path(self.directories.get(parent, branch).fd, name)
            value = branch.read_attribute(path, "origin")
            if value is None:
                recorded = self.identity.remembered(branch, entry.st_ino)
            else:
                recorded, protection = identity.read_record(value)
        if not layers and entry.st_nlink > 1 and self.pseudo_links:
            origin = recorded or source.origin(entry.st_ino)
            link = self.pseudo_links.key_of(origin, branch, entry)
            copy = self.pseudo_links.find(origin, above=branch)
            if copy is not None:
                branch, link, entry = copy
                source = self.identity.source(branch, self.pseudo_links.fd(branch), link, entry)
                recorded = origin
                value = branch.read_attribute(files.fd_path(self.pseudo_links.fd(branch), link), "origin")
                protection = 0 if value is None else identity.read_record(value)[1]
        number = source.number(entry.st_ino) if recorded is None else self.identity.number(recorded)
        node, new = self.nodes.of_file(number, source, entry)
        if new:
            node.origin_of_copy = recorded
            if protection and self.identity.may_hold_copies(branch):
                node.protection = protection
            if not layers:
                node.pseudo_link = link
        return node

    def give_name(self, node: Node, parent: Node, name: bytes) -> None:
        """Note a name of a node; a file that was held by descriptor for want of one has one again."""
        self._missing = None
        if node.add_name(parent, name):
            parent.lookups += 1
            parent.inside += 1  # type: ignore[misc]
        if node.seldom is not None:
            self._close_orphan(node)

    def take_name(self, node: Node, parent: Node, name: bytes) -> None:
        """A name of a node is gone."""
        if node.remove_name(parent, name):
            parent.inside -= 1  # type: ignore[misc]
            self.unreference(parent, 1)

    def _hold(self, node: Node) -> None:
        """An operation's hold counts as a lookup. Operations of other threads run while this one copies, and must
        neither drop its nodes nor make second ones for the same files."""
        node.lookups += 1
        self.held.nodes.append(node)

    def node_of(self, parent: Node, name: bytes) -> Node:
        """The node of a name that must exist; ENOENT."""
        return self.adopt(parent, name, self.resolve_existing(parent, name))

    def adopt_new(self, parent: Node, name: bytes, entry: os.stat_result) -> Node:
        """The node of an entry just made in the writable branch: it is no copy and merges with nothing."""
        branch = self.upper_for(parent)
        self.identity.forget(branch, entry.st_ino)
        source = self.identity.sources[branch].get(entry.st_dev)
        if source is None:
            source = self.identity.new_source(branch, self.upper(parent).fd, name, entry)
        node, _ = self.nodes.of_file(source.number(entry.st_ino), source, entry)
        if stat.S_ISDIR(entry.st_mode):
            node.layers = (branch,)
        self.give_name(node, parent, name)
        self._hold(node)
        return node

    def adopt_unnamed(self, parent: Node, fd: int) -> Node:
        """The node of a file just made without a name in the writable branch's part of `parent`."""
        entry = os.fstat(fd)
        directory = self.upper(parent)
        self.identity.forget(directory.branch, entry.st_ino)
        source = self.identity.source(directory.branch, directory.fd, b".", entry)
        held = os.dup(fd)
        node, _ = self.nodes.of_file(source.number(entry.st_ino), source, entry)
        node.orphan_fd = held
        self._hold(node)
        return node

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Let go of the nodes adopted within at its end: for a step among many of one operation."""
        outer = self.held.nodes
        self.held.nodes = []
        try:
            yield
        finally:
            self.release_held()
            self.held.nodes = outer
            self.directories.trim()

    def release_held(self) -> None:
        for node in self.held.nodes:
            self.unreference(node, 1)

    def unreference(self, node: Node, count: int) -> None:
        """Take references off a node. With the last it leaves the table and lets go of its names' directories."""
        node.lookups -= count
        if node.lookups > 0:
            return
        unreferenced = [node]
        while unreferenced:
            node = unreferenced.pop()
            if self.nodes.drop(node):
                self._release(node)
                for parent, name in node.names:
                    node.remove_name(parent, name)
                    parent.lookups -= 1
                    parent.inside -= 1  # type: ignore[misc]
                    unreferenced.append(parent)

    def _release(self, node: Node) -> None:
        """Close the descriptors of a node that leaves the table."""
        self.directories.forget(node)
        self._close_orphan(node)

    @staticmethod
    def _close_orphan(node: Node) -> None:
        if node.orphan_fd >= 0:
            os.close(node.orphan_fd)
            node.orphan_fd = -1

    def upper(self, node: Node) -> BranchDirectory:
        """The writable branch's directory of `node`, which must be in its layers."""
        return self.directories.get(node, self.upper_for(node))

    def close(self) -> None:
        """Let go of the branches, before anything that takes longer: somebody may want to unmount them."""
        self.directories.clear()
        for node in self.nodes:
            if node.seldom is not None:
                self._close_orphan(node)
        self.pseudo_links.close()
        for branch in self.branches:
            branch.close()
        self.spare.give()
