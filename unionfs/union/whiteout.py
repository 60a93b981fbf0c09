"""Whiteouts and opaque marks, made and removed. What they look like is in `form`."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from unionfs.linux import files
from unionfs.union import form
from unionfs.union.branch import Branch
from unionfs.union.directories import BranchDirectory
from unionfs.union.errors import fail


def create(directory: BranchDirectory, name: bytes) -> None:
    """Hide `name` of the branches below `directory`. Already hidden is fine. ENOSPC and friends pass."""
    branch = directory.branch
    target = form.whiteout_of(name)
    if target in directory:
        return
    if not branch.keeps_order:
        # To sync one link would be to log them all, or to commit (log_all_new_ancestors(), fs/btrfs/tree-log.c).
        _create_file(directory.fd, target)
    else:
        try:
            os.link(form.BASE, target, src_dir_fd=branch.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            _create_base(branch)
            os.link(form.BASE, target, src_dir_fd=branch.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.EXDEV):
                raise
            # The base has all the links its file system allows, or the file system has no hard links.
            _create_file(directory.fd, target)
    directory.add(target)


def _create_base(branch: Branch) -> None:
    with branch.unseen(), contextlib.suppress(FileExistsError):
        _create_file(branch.fd, form.BASE)


def _create_file(dirfd: int, name: bytes) -> None:
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444, dir_fd=dirfd))


def tell_others(directory: BranchDirectory, name: bytes) -> None:
    """Where the whiteout of `name` does not tell it, put overlayfs's in the name's place, unless something is there:
    for overlayfs, and for who reads or packs the branch without knowing our form. Ours hides it all the same, so it is
    nothing to fail for: overlayfs itself has no such devices made, nor has a user before Linux 5.8."""
    if form.is_long(name):
        with contextlib.suppress(OSError):
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=directory.fd)
            directory.add(name)


@contextlib.contextmanager
def opened(directory: BranchDirectory, name: bytes) -> Iterator[int]:
    """A descriptor on the whiteout of `name`. EINVAL for somebody else's that is no file."""
    looked_at = os.open(form.whiteout_of(name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
    try:
        if not stat.S_ISREG(os.fstat(looked_at).st_mode):
            fail(errno.EINVAL, name)
        fd = files.reopen(looked_at, os.O_RDONLY)
    finally:
        os.close(looked_at)
    try:
        yield fd
    finally:
        os.close(fd)


def drop(directory: BranchDirectory, name: bytes) -> None:
    """Take the whiteout of `name` away, if there is one."""
    target = form.whiteout_of(name)
    if target in directory:
        os.unlink(target, dir_fd=directory.fd)
        directory.discard(target)


def mark_opaque(branch: Branch, fd: int) -> None:
    """Make the directory `fd` opaque in the AUFS form. Marked already is fine."""
    # What its owner may not look into tells by the attribute's name alone.
    if not branch.keeps_order or branch.confined:
        mark_opaque_unseen(branch, fd)
    with contextlib.suppress(FileExistsError):
        _create_file(fd, form.OPAQUE)


def mark_opaque_unseen(branch: Branch, fd: int) -> None:
    """Make the directory `fd` opaque by an attribute: no entry of it says so, and it can be emptied."""
    os.setxattr(files.fd_path(fd), branch.attribute("opaque"), b"y")


def remove_all(directory: BranchDirectory) -> None:
    """Remove the whiteouts and markers of a directory in which the union shows nothing: there is nothing else in it."""
    for name in list(directory.names):
        os.unlink(name, dir_fd=directory.fd)
        directory.discard(name)


def drop_overlay(directory: BranchDirectory, name: bytes) -> None:
    """Take overlayfs's whiteout of `name` away, beside which there is ours: the name is free for a new entry."""
    os.unlink(name, dir_fd=directory.fd)
    directory.discard(name)


def count_directories(root_fd: int) -> int:
    """How many of a branch's top directories are its union's own."""
    count = 0
    for name in (form.PSEUDO_LINKS, form.WORK_AREA):
        with contextlib.suppress(FileNotFoundError):
            count += stat.S_ISDIR(os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_mode)
    return count
