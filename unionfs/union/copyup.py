"""Copy-up: making a file's bytes live in the writable branch before it is changed.

Parents first; the copy is made complete without a name (O_TMPFILE; where there are no such files, and other kinds, in
the work area) and then linked or renamed into place, so that a crash or a full disk leaves the union, and the branch's
names, as they were. However many ask, the data is copied once: the first marks the node, lets go of the lock and
copies; the others wait for it.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from unionfs.linux import files
from unionfs.union import copyattributes, copydata, form, merge, order, place, protection, whiteout
from unionfs.union.errors import fail
from unionfs.union.identity import record
from unionfs.union.nodes import Node
from unionfs.union.place import Place
from unionfs.union.stack import Stack

# Bytes that are copied from memory to memory while others wait: for fewer, letting somebody else serve them costs more.
_QUICK = 1 << 22


def copy_up(stack: Stack, node: Node, *, size: int | None = None) -> bool:
    """Make `node` live in the writable branch; of its data at most `size` bytes (a truncating open copies none), in
    which case the copy is the truncated file, modified now.

    True if something was copied or waited for: the lock may have been let go of, and names must be looked up again.
    Raises OSError: EROFS, or what copying gave (ENOSPC, EDQUOT, EIO); the branch is then as it was.
    """
    stack.require_writable()
    if node.is_directory:
        if node.is_upper or not node.layers:
            return False
        copy_up_directory(stack, node)
        return True
    if node.is_upper:
        return False
    while node.copying:
        stack.waiting.begins()
        stack.settled.wait(stack.waiting.patience())
        stack.waiting.check()
    if not node.is_upper:  # else what was waited for has done it
        node.copying = True
        try:
            if node.kind == stat.S_IFREG:
                _copy_up_regular(stack, node, size)
            else:
                _copy_up_special(stack, node)
        finally:
            node.copying = False
            stack.settled.notify_all()
    return True


def copy_up_directory(stack: Stack, node: Node) -> None:
    """Give a directory an (empty) part in the writable branch, and its ancestors before it. The lock is kept."""
    missing = []
    while not node.is_upper:
        parent = node.parent
        if parent is None:
            break
        missing.append(node)
        node = parent
    for directory in reversed(missing):
        _copy_up_one_directory(stack, directory)


def _copy_up_one_directory(stack: Stack, node: Node) -> None:
    branch = stack.upper_for(node.parent)
    source = place.of(stack, node).open(os.O_PATH)
    name = branch.work_name()
    kept = protection.of_file(source)
    try:
        os.mkdir(name, 0o700, dir_fd=branch.work_fd)
        copy = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=branch.work_fd)
        try:
            copyattributes.by_name(branch, source, Place(copy, b""), record(node.origin, kept))
            entry = os.fstat(copy)
            with branch.permitted(copy):  # to be moved (vfs_rename(), fs/namei.c)
                _place(stack, node, branch.work_fd, name)
        finally:
            os.close(copy)
    except BaseException:
        branch.discard_work(name)
        raise
    finally:
        os.close(source)
    node.layers = (branch, *node.layers)
    _protect(node, kept)
    stack.copied(node, branch, entry, entry.st_mode)


def _copy_up_special(stack: Stack, node: Node) -> None:
    """Symbolic links, fifos, sockets and devices: quick, so the lock is kept."""
    branch = stack.upper_for(node.parent)
    source = place.of(stack, node).open(os.O_PATH)
    name = branch.work_name()
    try:
        copy = Place(branch.work_fd, name)
        entry = os.fstat(source)
        if stat.S_ISLNK(entry.st_mode):
            os.symlink(os.readlink(b"", dir_fd=source), name, dir_fd=copy.fd)
        else:
            os.mknod(name, stat.S_IFMT(entry.st_mode) | 0o600, entry.st_rdev, dir_fd=copy.fd)
        copyattributes.by_name(branch, source, copy, record(node.origin, 0))
        made = copy.stat()
        if not node.names:
            _become_orphan(node, copy.open(os.O_PATH))
        elif place.has_several_names(node, entry):
            _link_hard(stack, node, copy, place.links(stack, node, entry))
        else:
            _place(stack, node, copy.fd, name)
        stack.copied(node, branch, made, made.st_mode)
    finally:
        os.close(source)
        branch.discard_work(name)


def _copy_up_regular(stack: Stack, node: Node, size: int | None) -> None:
    branch = stack.upper_for(node.parent)
    source = place.of(stack, node).open(os.O_RDONLY)
    copy = -1
    staged: bytes | None = None
    try:
        entry = os.fstat(source)
        length = entry.st_size if size is None else min(size, entry.st_size)
        syncs = length > 0 and branch.durable and not stack.volatile
        if syncs or length > _QUICK or (length and files.waits_for_disk(source, 0)):
            stack.waiting.begins()
        kept = protection.of_file(source)
        mode = stat.S_IMODE(entry.st_mode) & 0o777
        if branch.confined:
            mode |= stat.S_IRUSR | stat.S_IWUSR  # else its attributes could not be set
        copy, staged = branch.fresh_file(mode)
        made = os.fstat(copy)
        unnamed = staged is None
        if syncs and unnamed and not order.is_kept(stack, branch):
            staged = branch.work_name()
        with stack.unlocked():
            if length:
                copydata.copy(source, entry, copy, made.st_dev, length, stack.waiting.check)
            # A truncated file was modified now: the link into place is what truncates.
            modified = time.time_ns() if size is not None and size <= entry.st_size else entry.st_mtime_ns
            copyattributes.by_descriptor(branch, source, entry, copy, made, record(node.origin, kept), modified)
            if syncs:
                # Before the name: after a power cut a name without its data would hide the lower file.
                if unnamed and staged is not None:
                    files.link_fd(copy, branch.work_fd, staged)
                os.fsync(copy)
        if not node.names:
            # Unlinked while it was copied, or before: the copy never gets a name.
            _become_orphan(node, os.dup(copy))
        elif place.has_several_names(node, entry):
            _link_hard(stack, node, Place(copy, b""), place.links(stack, node, entry))
        else:
            parent = _parent(node)
            copy_up_directory(stack, parent)
            directory = stack.upper(parent)
            with stack.unseen(parent):
                if staged is None:
                    files.link_fd(copy, directory.fd, node.name)
                else:
                    os.rename(staged, node.name, src_dir_fd=branch.work_fd, dst_dir_fd=directory.fd)
                    staged = None
            directory.add(node.name)
        _protect(node, kept)
        stack.copied(node, branch, made, entry.st_mode)
    finally:
        os.close(source)
        if copy >= 0:
            os.close(copy)
        if staged is not None:
            branch.discard_work(staged)


def _protect(node: Node, flags: int) -> None:
    if flags:
        node.protection = flags


def _become_orphan(node: Node, fd: int) -> None:
    if node.orphan_fd >= 0:
        os.close(node.orphan_fd)
    node.orphan_fd = fd


def _link_hard(stack: Stack, node: Node, copy: Place, links: int) -> None:
    """Link the copy of a file with several names: first the key, which all its names then lead to, then one name."""
    parent, name = _parent(node), node.name
    copy_up_directory(stack, parent)
    directory = stack.upper(parent)
    branch = directory.branch
    fd = copy.open(os.O_PATH) if copy.name else os.dup(copy.fd)
    try:
        with branch.permitted(fd):
            copy.setxattr(branch.attribute("nlink"), b"=%d" % links)
        key = stack.pseudo_links.add(branch, node.origin, fd)
        try:
            with stack.unseen(parent):
                stack.pseudo_links.link_into(branch, key, directory.fd, name)
        except BaseException:
            stack.pseudo_links.remove(branch, key)
            raise
    finally:
        os.close(fd)
    directory.add(name)
    node.pseudo_link = key


def own_name(stack: Stack, node: Node, parent: Node, name: bytes) -> None:
    """Make a copied-up hard link's `name` an entry of the writable branch where the key served it so far."""
    copy_up_directory(stack, parent)
    directory = stack.upper(parent)
    if node.pseudo_link is None or name in directory:
        return
    stack.pseudo_links.fix_count(node.branch, node.pseudo_link)
    with stack.unseen(parent):
        stack.pseudo_links.link_into(node.branch, node.pseudo_link, directory.fd, name)
    directory.add(name)


def complete(stack: Stack, node: Node) -> bool:
    """Make a directory live in the writable branch with all below it, so that it can be renamed as one entry.

    Nothing that the union shows changes on the way. True if the lock may have been let go of; callers start over
    until it is False. Then the directory is opaque and merges nothing.
    """
    stack.require_writable()
    if node.is_pure_upper:
        return False
    branch = stack.upper_for(node)
    stack.waiting.begins()
    merged = [node]
    for directory in merged:  # it grows: the tree may be deeper than Python's stack
        stack.waiting.check()
        copy_up_directory(stack, directory)
        for name, branches in merge.names(stack, directory).items():
            merges = len(directory.layers) > 1  # still, or the lower ones do not shine through any more
            found = stack.resolve(directory, name, among=branches if merges else None)
            if found is None or found.is_pure_upper:
                continue
            if found.is_directory:
                merged.append(stack.adopt(directory, name, found))
            else:
                with stack.holding():
                    _complete_file(stack, stack.adopt(directory, name, found), directory, name)
        stack.directories.trim()
    # Whatever others did meanwhile, they did in the writable branch: no lower name is left to shine through.
    opaque = [directory for directory in reversed(merged) if len(directory.layers) > 1]
    for directory in opaque:
        with stack.unseen(directory) as fd:
            whiteout.mark_opaque(branch, fd)
        stack.upper(directory).add(form.OPAQUE)
        stack.directories.trim()
    order.everything_first(stack, branch)
    for directory in opaque:
        directory.layers = (branch,)
    return True


def _complete_file(stack: Stack, node: Node, parent: Node, name: bytes) -> None:
    copy_up(stack, node)
    if (parent, name) in node.names:
        own_name(stack, node, parent, name)


def _parent(node: Node) -> Node:
    parent = node.parent
    if parent is None:
        fail(errno.ENOENT)
    return parent


def _place(stack: Stack, node: Node, work_fd: int, work_name: bytes) -> None:
    """Rename a finished copy from the work area to where the node is."""
    parent = _parent(node)
    copy_up_directory(stack, parent)
    directory = stack.upper(parent)
    with stack.unseen(parent):
        os.rename(work_name, node.name, src_dir_fd=work_fd, dst_dir_fd=directory.fd)
    directory.add(node.name)
