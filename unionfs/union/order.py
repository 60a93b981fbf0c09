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
taken again goes later, with many others, when the new entry is in a transaction (`outlived`). `volatile` leaves it all
out.
"""

from __future__ import annotations

import errno
import fcntl
import os

from unionfs.linux import files
from unionfs.union import whiteout
from unionfs.union.branch import Branch
from unionfs.union.directories import BranchDirectory
from unionfs.union.stack import Stack


def is_kept(stack: Stack, branch: Branch) -> bool:
    """Whether nothing here need be done: the file system keeps the order, or a power cut may take the branch."""
    return stack.volatile or branch.keeps_order


def first(stack: Stack, branch: Branch, fd: int) -> None:
    """The file `fd`, its names and its attributes before what follows."""
    if is_kept(stack, branch):
        return
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:  # a directory that the server may not read (EBADF)
        everything_first(stack, branch)
        return
    stack.waiting.begins()
    os.fsync(fd)


def whiteout_first(stack: Stack, directory: BranchDirectory, name: bytes) -> None:
    """The whiteout of `name` before what follows: the entry beside it goes."""
    if is_kept(stack, directory.branch):
        return
    try:
        with whiteout.opened(directory, name) as fd:
            first(stack, directory.branch, fd)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.EACCES):
            raise
        everything_first(stack, directory.branch)  # somebody else's: a link, a socket, a fifo


def everything_first(stack: Stack, branch: Branch) -> None:
    """All that was done in the branch before what follows. Bytes of files are only those that were synced."""
    if not is_kept(stack, branch):
        stack.waiting.begins()
        files.btrfs_commit(branch.fd)
