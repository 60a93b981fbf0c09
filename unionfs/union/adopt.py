"""From a name to its node: the one that its file has, or a new one; and how long it stays. Called with Stack.lock held.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator

from unionfs.linux import files
from unionfs.union import identity
from unionfs.union.forgotten import Forgotten
from unionfs.union.identity import Origin, Source
from unionfs.union.nodes import Node
from unionfs.union.pseudolink import PseudoLinks
from unionfs.union.resolve import Found, Resolution


class Held(threading.local):
    """The nodes that the operation of this thread holds, and the numbers of those that it has changed."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.changed: dict[int, None] = {}


class Adoption(Resolution):
    """A Stack, as far as it gives files their nodes."""

    held: Held
    pseudo_links: PseudoLinks
    forgotten: Forgotten | None  # None: nobody wants to know, or it got too much

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
            self.close_orphan(node)

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
                if self.forgotten is not None and node.is_upper:
                    self._remember(self.forgotten, node)
                for parent, name in node.names:
                    node.remove_name(parent, name)
                    parent.lookups -= 1
                    parent.inside -= 1  # type: ignore[misc]
                    unreferenced.append(parent)

    def _remember(self, forgotten: Forgotten, node: Node) -> None:
        forgotten.add(node)
        if forgotten.is_full:
            self.forgotten = None

    def _release(self, node: Node) -> None:
        """Close the descriptors of a node that leaves the table."""
        self.directories.forget(node)
        self.close_orphan(node)

    @staticmethod
    def close_orphan(node: Node) -> None:
        if node.orphan_fd >= 0:
            os.close(node.orphan_fd)
            node.orphan_fd = -1
