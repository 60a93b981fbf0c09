"""Status, owner, mode, times, size, extended attributes and ACLs of a node."""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from unionfs.linux import consts
from unionfs.union import copyup, form, place, privileges, protection, whiteout
from unionfs.union.errors import fail
from unionfs.union.nodes import Node
from unionfs.union.privileges import ROOT, Caller
from unionfs.union.resolve import Found
from unionfs.union.stack import Stack


class Attr(NamedTuple):
    """st_ino and st_nlink as the union shows them; everything else is the branch file's own. `number` is what the
    kernel is to call the node: its st_ino, unless it was renumbered."""

    ino: int
    nlink: int
    st: os.stat_result
    number: int


# As Attr(*fields), without a call of Python.
_attr: Callable[[tuple[int, int, os.stat_result, int]], Attr] = functools.partial(tuple.__new__, Attr)


def getattr_(stack: Stack, node: Node) -> Attr:
    return of_entry(stack, node, place.of(stack, node).stat())


def of_entry(stack: Stack, node: Node, entry: os.stat_result) -> Attr:
    """The attributes of a node whose status in its branch is known."""
    if node.kind == stat.S_IFDIR:
        nlink = entry.st_nlink if len(node.layers) == 1 and node.parent else _directory_links(stack, node, entry)
        return _attr((node.ino, nlink, entry, node.ino))
    if node.seldom is None:
        return _attr((node.ino, entry.st_nlink, entry, node.ino))
    return Attr(node.ino, place.links(stack, node, entry), entry, node.number)


def _directory_links(stack: Stack, node: Node, entry: os.stat_result) -> int:
    """As overlayfs has it (ovl_getattr(), fs/overlayfs/inode.c): a directory of one branch has its own count, a merged
    one 1, "not counted" (find(1) and btrfs agree on that), for it would cost a status of every entry. 0 once removed.
    """
    if len(node.layers) != 1:
        return 1 if node.layers else 0
    if node is stack.nodes.root and entry.st_nlink > 1:
        return entry.st_nlink - whiteout.count_directories(node.layers[0].fd)
    return entry.st_nlink


def counted(stack: Stack, parent: Node, name: bytes, found: Found) -> Attr:
    """The attributes of a name just resolved; they count one lookup of its node."""
    node = stack.node_at(parent, name, found)
    node.lookups += 1
    try:
        if node.branch is found.branch or found.layers:
            return of_entry(stack, node, found.entry)
        return getattr_(stack, node)
    except BaseException:
        stack.unreference(node, 1)
        raise


def setattr_(
    stack: Stack,
    node: Node,
    *,
    mode: int | None,
    uid: int | None,
    gid: int | None,
    size: int | None,
    atime_ns: int | None,
    mtime_ns: int | None,
    caller: Caller = ROOT,
    kill: bool = False,
    kernel_takes: bool = False,
) -> Attr:
    """Change what is not None; if nothing is, what chown(2) of neither owner nor group does. A lower file is copied up,
    of its data no more than `size` bytes; with `kill`, `caller` lacks CAP_FSETID and sets the size; with `kernel_takes`
    the `mode` may be what the kernel leaves of set-ID bits (privileges.completed)."""
    if size is not None and node.kind != stat.S_IFREG:
        fail(errno.EISDIR if node.is_directory else errno.EINVAL)
    more = kill or any(value is not None for value in (mode, uid, gid, atime_ns, mtime_ns))
    asked = more or size is not None
    protection.refuse(stack, node, protection.ANY if asked else protection.IMMUTABLE)
    copied = copyup.copy_up(stack, node, size=size)
    here = place.of(stack, node)
    if copied and size is not None and here.stat().st_size == size:
        size = None
    if not asked:
        with place.held(here) as there:
            _chown_to_nobody_else(there, caller)
    elif more or size is not None:
        with place.held(here) as there:
            if mode is not None:
                stack.remember_origin(node, mode)
                if kernel_takes:
                    mode = privileges.completed(there.stat(), mode, caller)
            _change(there, mode, uid, gid, size, atime_ns, mtime_ns, caller, kill=kill)
        if mode is not None and mode & stat.S_IRUSR and node.kind in (stat.S_IFREG, stat.S_IFDIR):
            stack.identity.forget(node.branch, node.inode)
        if mode is not None and node.is_directory:
            stack.reconsider(node)
    return of_entry(stack, node, here.stat())


def _change(
    here: place.Place,
    mode: int | None,
    uid: int | None,
    gid: int | None,
    size: int | None,
    atime_ns: int | None,
    mtime_ns: int | None,
    caller: Caller,
    *,
    kill: bool,
) -> None:
    if size is not None:
        fd = here.open(os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
    owned = uid is not None or gid is not None
    if kill or owned:
        privileges.take(here, caller)
    if owned:
        here.chown(-1 if uid is None else uid, -1 if gid is None else gid)
    if mode is not None:
        # After the owner: chown(2) clears set-ID bits, and the kernel sends the mode that is to stay.
        here.chmod(mode)
    if atime_ns is not None or mtime_ns is not None:
        entry = here.stat()
        here.utime(
            entry.st_atime_ns if atime_ns is None else atime_ns,
            entry.st_mtime_ns if mtime_ns is None else mtime_ns,
        )


def _chown_to_nobody_else(here: place.Place, caller: Caller) -> None:
    """chown(2) of neither owner nor group: it changes the ctime, and takes set-ID bits.

    The kernel sends the same before a write that takes them (file_remove_privs(), fs/inode.c), whose caller need not be
    allowed to chown: what he may do by writing is done, and else nothing.
    """
    entry = here.stat()
    if privileges.has_any(entry) and not caller.has(consts.CAP_FSETID):
        owns = caller.uid == entry.st_uid or caller.has(consts.CAP_FOWNER)
        if not owns and not privileges.may_write(entry, caller):
            return
        privileges.take(here, caller)
    here.chown(-1, -1)


def kill_privileges(stack: Stack, node: Node, caller: Caller, *, unless_capable: bool) -> bool:
    """Take the set-ID bits off a regular file of the writable branch, as a write does; False if that changed nothing.
    `unless_capable`: it is not known that the caller lacks CAP_FSETID."""
    with place.held(place.of(stack, node)) as here:
        return privileges.take(here, caller, unless_capable=unless_capable)


def getxattr(stack: Stack, node: Node, name: bytes) -> bytes:
    if form.is_private_attribute(name):
        fail(errno.ENODATA, name)
    try:
        with place.held(place.of(stack, node)) as here:
            return here.getxattr(name)
    except OSError as error:
        # A branch without ACLs has none; the kernel, which we have told that we have them, would fail every open.
        if error.errno == errno.EOPNOTSUPP and name.startswith(b"system.posix_acl_"):
            fail(errno.ENODATA, name)
        raise


def setxattr(stack: Stack, node: Node, name: bytes, value: bytes, flags: int) -> None:
    _refuse_private(name)
    protection.refuse(stack, node)
    copyup.copy_up(stack, node)
    if name == b"system.posix_acl_access":
        stack.remember_origin(node, 0)  # the owner's permissions are in it
    with place.held(place.of(stack, node)) as here:
        here.setxattr(name, value, flags)


def removexattr(stack: Stack, node: Node, name: bytes) -> None:
    """ENODATA before anything is copied up: the kernel asks for security.capability's removal on every first write.
    An ACL that is not set is removed all the same (posix_acl_xattr_set(), fs/posix_acl.c)."""
    stack.require_writable()
    _refuse_private(name)
    try:
        getxattr(stack, node, name)
    except OSError as error:
        if error.errno == errno.ENODATA and name.startswith(b"system.posix_acl_"):
            return
        raise
    protection.refuse(stack, node)
    copyup.copy_up(stack, node)
    with place.held(place.of(stack, node)) as here:
        here.removexattr(name)


def listxattr(stack: Stack, node: Node) -> list[bytes]:
    with place.held(place.of(stack, node)) as here:
        names = map(os.fsencode, here.listxattr())
    return [name for name in names if not form.is_private_attribute(name)]


def _refuse_private(name: bytes) -> None:
    if form.is_private_attribute(name):
        fail(errno.EPERM, name, "the attribute is reserved for the union")


def access(stack: Stack, node: Node, mask: int, uid: int, gid: int) -> bool:
    """access(2) by the mode bits alone. The kernel checks by itself (default_permissions), with supplementary groups
    and ACLs; this answers who mounts without that."""
    if mask & os.W_OK and not stack.writable:
        fail(errno.EROFS)
    entry = place.of(stack, node).stat()
    if uid == 0:
        return not mask & os.X_OK or node.is_directory or bool(entry.st_mode & 0o111)
    shift = 6 if uid == entry.st_uid else 3 if gid == entry.st_gid else 0
    return entry.st_mode >> shift & mask & 7 == mask & 7
