"""Rename, of anything to anywhere, in one step on disk.

A directory with lower parts is copied up whole before it is renamed, and made opaque. The alternatives were EXDEV
(fuse-overlayfs, overlayfs without redirect_dir), which breaks programs that rename directories, and a redirect
attribute, which is cheap but leaves a branch that only this union can read: the writable branch would no longer be
a plain AUFS layer. The copying shares extents where the file system can, and happens before anything changes.

The step itself is one renameat2(2). What has to hold around it is made true before, in ways the union does not show:
the source's whiteout (hidden by the source until it goes), the target's emptiness, the source's opacity.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from unionfs.linux import consts, files
from unionfs.union import copyup, create, form, merge, order, place, protection, remove, whiteout
from unionfs.union.errors import fail
from unionfs.union.nodes import Node
from unionfs.union.stack import Stack


def rename(stack: Stack, parent: Node, name: bytes, new_parent: Node, new_name: bytes, flags: int) -> None:
    """rename(2) and renameat2(2) with RENAME_EXCHANGE, or with RENAME_NOREPLACE and RENAME_WHITEOUT, alone or both.

    RENAME_WHITEOUT leaves a whiteout of the old name in the writable branch, whether or not a lower branch has the
    name now: the layer hides it from whatever it will be put upon. The whiteout is the union's own, so the old name is
    simply gone ("when not part of a union/overlay", says rename(2), "the whiteout appears as a character device").
    Overlayfs, mounted with its upper directory here, looks for that device once and finds that it has to do without
    (ovl_check_rename_whiteout(), fs/overlayfs/super.c). Asked for RENAME_WHITEOUT itself, overlayfs answers EINVAL.

    Raises OSError: EROFS, EPERM, EINVAL (other flags), ENOENT, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, and what copying
    up gives.
    """
    stack.require_writable()
    create.check_reserved(name)
    create.check_name(new_name)
    exchange = flags == consts.RENAME_EXCHANGE
    if not exchange and flags & ~(consts.RENAME_NOREPLACE | consts.RENAME_WHITEOUT):
        fail(errno.EINVAL)
    if not new_parent.layers:
        fail(errno.ENOENT, new_name)
    while True:
        source = stack.node_of(parent, name)
        target = _target(stack, new_parent, new_name, flags)
        if source is target:
            return
        protection.refuse_removal(stack, parent, source)
        if target is None:
            protection.refuse(stack, new_parent, protection.IMMUTABLE)
        else:
            protection.refuse_removal(stack, new_parent, target)
        _check(stack, source, target, exchange)
        if _prepare(stack, source) or (target is not None and _prepare_target(stack, target, exchange)):
            continue  # the lock was let go of: look again
        break
    _own_name(stack, source, parent, name)
    if target is None:
        create.free_name(stack, new_parent, new_name)
    else:
        copyup.copy_up_directory(stack, new_parent)
    if target is not None and exchange:
        _own_name(stack, target, new_parent, new_name)
        _exchange(stack, source, (parent, name), target, (new_parent, new_name))
        return
    _replace(stack, source, (parent, name), target, (new_parent, new_name), flags)


def _target(stack: Stack, parent: Node, name: bytes, flags: int) -> Node | None:
    found = stack.resolve(parent, name)
    if found is None:
        if flags == consts.RENAME_EXCHANGE:
            fail(errno.ENOENT, name)
        return None
    if flags & consts.RENAME_NOREPLACE:
        fail(errno.EEXIST, name)
    return stack.adopt(parent, name, found)


def _check(stack: Stack, source: Node, target: Node | None, exchange: bool) -> None:
    if target is None or exchange:
        return
    if target.is_directory and not source.is_directory:
        fail(errno.EISDIR)
    if source.is_directory and not target.is_directory:
        fail(errno.ENOTDIR)
    if target.is_directory and not merge.is_empty(stack, target):
        fail(errno.ENOTEMPTY)


def _prepare(stack: Stack, node: Node) -> bool:
    return copyup.complete(stack, node) if node.is_directory else copyup.copy_up(stack, node)


def _prepare_target(stack: Stack, target: Node, exchange: bool) -> bool:
    if exchange:
        return _prepare(stack, target)
    return not target.is_directory and remove.counts_its_names(stack, target)


def _own_name(stack: Stack, node: Node, parent: Node, name: bytes) -> None:
    if node.pseudo_link is not None:
        copyup.own_name(stack, node, parent, name)


def _exchange(
    stack: Stack, source: Node, source_name: tuple[Node, bytes], target: Node, target_name: tuple[Node, bytes]
) -> None:
    for node, (parent, name) in ((source, target_name), (target, source_name)):
        _hide_below(stack, node, parent, name)
    order.everything_first(stack, stack.upper_for(source_name[0]))  # the log may have one of the two without the other
    files.renameat2(
        stack.upper(source_name[0]).fd, source_name[1], stack.upper(target_name[0]).fd, target_name[1],
        consts.RENAME_EXCHANGE,
    )  # fmt: skip
    # Both before either loses its old one: no directory is without a name in between.
    stack.give_name(source, *target_name)
    stack.give_name(target, *source_name)
    stack.take_name(source, *source_name)
    stack.take_name(target, *target_name)


def _replace(
    stack: Stack,
    source: Node,
    source_name: tuple[Node, bytes],
    target: Node | None,
    target_name: tuple[Node, bytes],
    flags: int,
) -> None:
    new_parent, new_name = target_name
    whiteout_always = bool(flags & consts.RENAME_WHITEOUT)
    _hide_below(stack, source, new_parent, new_name)
    if target is None:
        _move(stack, source_name, target_name, whiteout_always)
    elif target.is_directory:
        # Somebody may be in it, and change it: that must not be the lower one.
        copyup.copy_up_directory(stack, target)
        with place.outliving(stack, target), _emptied(stack, target):
            _move(stack, source_name, target_name, whiteout_always)
        remove.directory_is_gone(stack, target)
    else:
        with remove.losing_name(stack, target, new_parent, new_name):
            _move(stack, source_name, target_name, whiteout_always)
    stack.give_name(source, *target_name)
    stack.take_name(source, *source_name)


@contextlib.contextmanager
def _emptied(stack: Stack, target: Node) -> Iterator[None]:
    """A directory that the union shows empty is empty in the writable branch too while it is replaced. If that fails it
    is given a marker again: the attribute that then hides what is below it is read by nobody else.
    """
    branch = stack.upper(target).branch
    if stack.upper(target).names:
        with stack.unseen(target) as fd:
            whiteout.mark_opaque_unseen(branch, fd)
            order.first(stack, branch, fd)
            target.layers = (branch,)
            whiteout.remove_all(stack.upper(target))
    try:
        yield
    except OSError:
        if target.is_pure_upper:
            with contextlib.suppress(OSError), stack.unseen(target) as fd:
                whiteout.mark_opaque(branch, fd)
                stack.upper(target).add(form.OPAQUE)
        raise


def _move(
    stack: Stack, source_name: tuple[Node, bytes], target_name: tuple[Node, bytes], whiteout_always: bool
) -> None:
    """The step itself, with the source's whiteout before it and without the target's after it."""
    parent, name = source_name
    new_parent, new_name = target_name
    directory, into = stack.upper(parent), stack.upper(new_parent)
    with remove.hiding(stack, parent, name, directory, always=whiteout_always) as hidden:
        if hidden:
            # Not the whiteout alone: of a copy that is not yet on the disk under this name nothing would be left.
            order.first(stack, directory.branch, directory.fd)
        os.rename(name, new_name, src_dir_fd=directory.fd, dst_dir_fd=into.fd)
        directory.discard(name)
    create.appeared(stack, new_parent, new_name)


def _hide_below(stack: Stack, node: Node, parent: Node, name: bytes) -> None:
    """A directory that comes to lie over a lower one must not merge with it."""
    if node.is_directory and parent.layers[1:]:
        below = stack.below(parent, name)
        if below is not None and stat.S_ISDIR(below.st_mode):
            with stack.unseen(node) as fd:
                whiteout.mark_opaque(stack.upper(node).branch, fd)
            stack.upper(node).add(form.OPAQUE)

