"""Files that nobody may change: FS_IMMUTABLE_FL and FS_APPEND_FL of chattr(1), as lower branches have them.

In the writable branch its file system enforces them. A lower file would be copied up, or whited out, whatever it has;
so the union refuses what the VFS refuses on one file system (may_delete(), vfs_link(), may_open(), may_setattr() and
xattr_permission() in fs/), with EPERM. A copy could not be made, nor anything below a copy, if it had the flags itself:
what the original had is kept beside its origin, as overlayfs does (ovl_copy_fileattr(), fs/overlayfs/copy_up.c).
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs.linux import consts, files
from unionfs.union import place
from unionfs.union.errors import fail
from unionfs.union.nodes import Node
from unionfs.union.stack import Stack

IMMUTABLE, APPEND = consts.FS_IMMUTABLE_FL, consts.FS_APPEND_FL
ANY = IMMUTABLE | APPEND

# statx(2) has them by the same numbers (linux/stat.h).
assert (consts.STATX_ATTR_IMMUTABLE, consts.STATX_ATTR_APPEND) == (IMMUTABLE, APPEND)


def of_file(dirfd: int, name: bytes = b"") -> int:
    """What a branch's file has of ANY; 0 where its file system has no flags. A descriptor may be of O_PATH."""
    return files.statx(dirfd, name).attributes & ANY


def shown(more: files.Statx, node: Node) -> files.Statx:
    """What statx(2) tells of a node's file, with what is kept of its original."""
    kept = node.protection
    return more._replace(attributes=more.attributes | kept, attributes_mask=more.attributes_mask | kept)


def of(stack: Stack, node: Node) -> int:
    """What the union has to enforce for a node. The union must be writable."""
    if node.source.branch.writable:
        return node.protection
    if node.kind not in (stat.S_IFREG, stat.S_IFDIR) or (node.is_directory and not node.layers):
        return 0
    here = place.of(stack, node)
    try:
        return of_file(here.fd, here.name)
    except FileNotFoundError:
        fail(errno.ESTALE, here.name)  # somebody changed the branch


def refuse(stack: Stack, node: Node, flags: int = ANY) -> None:
    """EPERM if a node has one of these."""
    if stack.writable and of(stack, node) & flags:
        fail(errno.EPERM)


def refuse_open(stack: Stack, node: Node, flags: int) -> None:
    """EPERM of an open(2) for writing: what only grows may be opened to append."""
    refuse(stack, node, IMMUTABLE if flags & os.O_APPEND and not flags & os.O_TRUNC else ANY)


def refuse_removal(stack: Stack, parent: Node, node: Node) -> None:
    """EPERM for a name that goes: of what is protected, or in what is."""
    refuse(stack, parent)
    refuse(stack, node)
