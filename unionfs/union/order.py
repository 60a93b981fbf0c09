"""What has to be on the disk before what follows it, where the file system does not keep the order by itself.

A change of several steps rests on the first being on the disk whenever the second is. What the file systems promise:

    ext4    one journal takes every change of names and attributes in order (fs/jbd2; without fast_commit, which mkfs
            leaves off)
    xfs     one log, likewise (Documentation/filesystems/xfs/xfs-delayed-logging-design.rst)
    btrfs   only whole transactions, every 30 s. Between them fsync(2) writes a log of the files it is asked for
            (fs/btrfs/tree-log.c). A file in it, or in a directory in it, is renamed and unlinked there at once
            (btrfs_log_new_name(), btrfs_del_dir_entries_in_log()), and the next fsync of any file writes that out;
            what was not synced itself is not in it, though it was made before.

Names that the log has, it has with the file's owner, mode and extended attributes, but with its data only if that file
was synced under a name: not as an unnamed one (btrfs_log_inode_parent()).

So on btrfs whiteouts and copies are synced before the step that rests on them; what makes a directory opaque is an
attribute of its own, and the marker comes second; whole trees wait for the transaction; and a whiteout whose name is
taken again goes later, with many others, when the new entry is in a transaction. `volatile` leaves it all out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING

from unionfs.linux import files
from unionfs.union import whiteout

if TYPE_CHECKING:
    from unionfs.union.directories import BranchDirectory
    from unionfs.union.nodes import Node
    from unionfs.union.stack import Stack

# A commit takes as long as some tens of syncs.
_MANY_OUTLIVED = 1024


def is_kept(stack: Stack) -> bool:
    """Whether nothing here need be done: the file system keeps the order, or a power cut may take the branch."""
    return stack.volatile or stack.branches[0].keeps_order


def first(stack: Stack, fd: int) -> None:
    """The file `fd`, its names and its attributes before what follows."""
    if is_kept(stack):
        return
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:  # a directory that the server may not read (EBADF)
        everything_first(stack)
        return
    stack.waiting.begins()
    os.fsync(fd)


def whiteout_first(stack: Stack, directory: BranchDirectory, name: bytes) -> None:
    """The whiteout of `name` before what follows: the entry beside it goes."""
    if is_kept(stack):
        return
    try:
        with whiteout.opened(directory, name) as fd:
            first(stack, fd)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.EACCES):
            raise
        everything_first(stack)  # somebody else's: a link, a socket, a fifo


def everything_first(stack: Stack) -> None:
    """All that was done in the branch before what follows. Bytes of files are only those that were synced."""
    if not is_kept(stack):
        stack.waiting.begins()
        files.btrfs_commit(stack.branches[0].fd)


class OutlivedWhiteouts:
    """Whiteouts beside entries that were made since, and hide them: dropped when the entries are on the disk. A layer
    at rest has none, but after a crash. Guarded by Stack.lock."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._names: list[tuple[Node, bytes]] = []

    def drop(self, parent: Node, name: bytes) -> None:
        """The whiteout of `name`, now or later."""
        stack = self._stack
        if is_kept(stack):
            whiteout.drop(stack.upper(parent), name)
            return
        parent.lookups += 1
        self._names.append((parent, name))

    @property
    def are_many(self) -> bool:
        return len(self._names) >= _MANY_OUTLIVED

    def drop_all(self) -> None:
        """At the end of an operation: the lock is let go of. Where the disk fails they stay, and do no harm."""
        stack = self._stack
        names, self._names = self._names, []
        try:
            if names:
                with stack.unlocked():
                    everything_first(stack)
        except OSError:
            again = set(names)
        else:
            again = set(self._names)  # removed and made again meanwhile
        for parent, name in names:
            if parent.layers and (parent, name) not in again:
                with contextlib.suppress(OSError):  # of this one: the others are no worse for it
                    self._drop(parent, name)
                    stack.directories.trim()
        for parent, _ in names:
            stack.unreference(parent, 1)

    def _drop(self, parent: Node, name: bytes) -> None:
        directory = self._stack.upper(parent)
        if name in directory:
            with self._stack.unseen(parent):
                whiteout.drop(directory, name)
