"""Names that go: unlink and rmdir. Whiteout first, then the entry: until the entry goes it hides the whiteout."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from unionfs.union import copyup, create, merge, order, place, protection, whiteout
from unionfs.union.directories import BranchDirectory
from unionfs.union.errors import fail
from unionfs.union.nodes import Node
from unionfs.union.stack import Stack


def unlink(stack: Stack, parent: Node, name: bytes) -> None:
    """Remove a name that is not a directory's. EROFS, EPERM, ENOENT, EISDIR, ENOSPC for the whiteout."""
    stack.require_writable()
    create.check_reserved(name)
    while True:
        found = stack.resolve_existing(parent, name)
        if found.is_directory:
            fail(errno.EISDIR, name)
        node = stack.adopt(parent, name, found)
        protection.refuse_removal(stack, parent, node)
        if not counts_its_names(stack, node):
            break
    copyup.copy_up_directory(stack, parent)
    directory = stack.upper(parent)
    with losing_name(stack, node, parent, name):
        # Also where losing_name made it just now. Asked before the whiteout: no answer means that nothing has happened.
        upper = found.branch.writable or name in directory
        with hiding(stack, parent, name, directory) as hidden:
            if upper:
                if hidden:
                    order.whiteout_first(stack, directory, name)
                os.unlink(name, dir_fd=directory.fd)
                directory.discard(name)


def rmdir(stack: Stack, parent: Node, name: bytes) -> None:
    """Remove an empty directory. EROFS, EPERM, ENOENT, ENOTDIR, ENOTEMPTY, ENOSPC for the whiteout."""
    branch = stack.upper_for(parent)
    create.check_reserved(name)
    node = stack.node_of(parent, name)
    if not node.is_directory:
        fail(errno.ENOTDIR, name)
    protection.refuse_removal(stack, parent, node)
    if node.is_pure_upper and not must_hide(stack, parent, name) and _remove_bare(stack, node, parent, name):
        return
    if not merge.is_empty(stack, node):
        fail(errno.ENOTEMPTY, name)
    was_upper = node.is_upper
    # It may be in use as a working directory, and changed: that must not be the lower one.
    copyup.copy_up_directory(stack, node)
    directory = stack.upper(parent)
    # Whiteouts and markers are in it: out of sight in one step, then deleted at leisure.
    removed = branch.work_name() if stack.upper(node).names else None
    if removed is not None:
        stack.waiting.begins()
    with place.outliving(stack, node), hiding(stack, parent, name, directory) as hidden:
        if hidden and was_upper:
            order.whiteout_first(stack, directory, name)
        if removed is None:
            os.rmdir(name, dir_fd=directory.fd)
        else:
            with branch.permitted(stack.upper(node).fd):
                os.rename(name, removed, src_dir_fd=directory.fd, dst_dir_fd=branch.work_fd)
        directory.discard(name)
    directory_is_gone(stack, node)
    if removed is not None:
        with stack.unlocked():
            branch.discard_work(removed)


def _remove_bare(stack: Stack, node: Node, parent: Node, name: bytes) -> bool:
    """Remove a directory that is in the writable branch alone, if nothing at all is in it: the kernel knows, and we
    need not look."""
    directory = stack.upper(parent)
    try:
        with place.outliving(stack, node):
            os.rmdir(name, dir_fd=directory.fd)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False  # or there are only whiteouts in it
        raise
    directory.discard(name)
    directory_is_gone(stack, node)
    return True


def counts_its_names(stack: Stack, node: Node) -> bool:
    """Copy up a lower file that has several names before one of them goes: the copy is where the link count is kept
    (overlayfs does the same with index=on, ovl_nlink_start()). True if the lock may have been let go of."""
    if node.is_upper or not place.has_several_names(node, place.of(stack, node).stat()):
        return False
    return copyup.copy_up(stack, node)


class hiding:
    """Around the step that takes an entry out of `directory`: if a lower branch would show the name then, or `always`,
    a whiteout is made first. It is not seen beside the entry; where the step fails it goes again.
    Entering says whether there is a whiteout."""

    __slots__ = ("_always", "_directory", "_hides", "_made", "_name", "_parent", "_stack")

    def __init__(
        self, stack: Stack, parent: Node, name: bytes, directory: BranchDirectory, *, always: bool = False
    ) -> None:
        self._stack = stack
        self._parent = parent
        self._name = name
        self._directory = directory
        self._always = always
        self._hides = False
        self._made = False

    def __enter__(self) -> bool:
        self._hides = hides = self._always or must_hide(self._stack, self._parent, self._name)
        if hides and not self._directory.hides(self._name):
            whiteout.create(self._directory, self._name)
            self._made = True
        return hides

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            if self._hides:
                whiteout.tell_others(self._directory, self._name)
        elif self._made and issubclass(kind, OSError):
            with contextlib.suppress(OSError):
                whiteout.drop(self._directory, self._name)


def must_hide(stack: Stack, parent: Node, name: bytes) -> bool:
    """Whether a lower branch would show `name`."""
    return not parent.is_pure_upper and stack.below(parent, name) is not None


class losing_name(place.outliving):
    """Around the removal of one name of a file: its bytes outlive the last name, and for a pseudo-linked file the
    count follows and the key goes with the last name.

    A name that only the key stands for becomes an entry first: its removal then takes name and count in one step.
    """

    __slots__ = ("_last_key", "_name", "_parent")

    def __init__(self, stack: Stack, node: Node, parent: Node, name: bytes) -> None:
        super().__init__(stack, node)
        self._parent = parent
        self._name = name
        self._last_key: bytes | None = None

    def __enter__(self) -> None:
        stack, node = self._stack, self._node
        key = node.pseudo_link if node.branch.writable else None
        if key is not None:
            copyup.own_name(stack, node, self._parent, self._name)
            stack.pseudo_links.follow_links(node.branch, key)
            _count_first(stack, node)
            # Unknown is not the last: other names may be served by the key alone.
            if stack.pseudo_links.recorded(node.branch, key, place.of(stack, node).stat().st_nlink) == 1:
                self._last_key = key
        super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        super().__exit__(kind, *error)
        if kind is not None:
            return
        self._stack.take_name(self._node, self._parent, self._name)
        if self._last_key is not None:
            self._node.pseudo_link = None
            with contextlib.suppress(OSError):  # the name is gone; the next mount sweeps a key that is left
                self._stack.pseudo_links.remove(self._node.branch, self._last_key)


def _count_first(stack: Stack, node: Node) -> None:
    """The link count kept in an attribute of the file before what follows: a name goes."""
    if order.is_kept(stack, node.branch):
        return
    if node.kind != stat.S_IFREG:
        order.everything_first(stack, node.branch)  # nothing else can be synced by itself
        return
    fd = place.of(stack, node).open(os.O_RDONLY)
    try:
        order.first(stack, node.branch, fd)
    finally:
        os.close(fd)


def directory_is_gone(stack: Stack, node: Node) -> None:
    stack.directories.forget(node)
    stack.identity.forget(node.branch, node.inode)
    node.layers = ()
    for parent, name in list(node.names):
        stack.take_name(node, parent, name)
