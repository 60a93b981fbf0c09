"""The merge of one name over the branches. Called with Stack.lock held."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from unionfs.union import form, opaque
from unionfs.union.branch import Branch
from unionfs.union.directories import BranchDirectory, DirectoryCache
from unionfs.union.errors import fail
from unionfs.union.identity import Identity
from unionfs.union.nodes import Node, NodeTable

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


class Resolution:
    """A Stack, as far as it is asked what a name is. `branches` are top first; `upper_branch` is the writable one, if
    any is: the top one."""

    branches: list[Branch]
    upper_branch: Branch | None
    writable: bool
    identity: Identity
    directories: DirectoryCache
    nodes: NodeTable
    _missing: tuple[Node, bytes] | None

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

    # The writable branch.

    def require_writable(self) -> None:
        if not self.writable:
            fail(errno.EROFS)

    def upper_for(self, parent: Node | None) -> Branch:
        """The writable branch for what is made in `parent`, or copied up in it (None: for what has no name). EROFS."""
        if self.upper_branch is None:
            fail(errno.EROFS)
        return self.upper_branch

    def upper(self, node: Node) -> BranchDirectory:
        """The writable branch's directory of `node`, which must be in its layers."""
        return self.directories.get(node, self.upper_for(node))
