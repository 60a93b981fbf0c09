"""New names: files, directories, links. A name appears complete (owner, mode, ACL) or not at all.

The branch's own file system does the inheriting, of default ACLs and of the group in a set-group-ID directory. Where
what it makes belongs to the caller at once, one call makes the entry in place. Else a file is made unnamed in its
directory, other kinds in a staging directory that carries the parent's default ACL.
Where a whiteout of the name exists the entry is made first and the whiteout dropped afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from unionfs.linux import consts, files
from unionfs.union import copyup, form, order, outlived, place, protection, whiteout
from unionfs.union.branch import Branch
from unionfs.union.directories import BranchDirectory
from unionfs.union.errors import fail
from unionfs.union.nodes import Node
from unionfs.union.place import Place
from unionfs.union.stack import Stack

_DEFAULT_ACL = "system.posix_acl_default"
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID


def check_reserved(name: bytes) -> None:
    """EPERM for the union's own names."""
    if form.is_reserved(name):
        fail(errno.EPERM, name, "the name is reserved for the union")


def check_name(name: bytes) -> None:
    """Of a new name: EPERM for the union's own, ENAMETOOLONG."""
    check_reserved(name)
    if len(name) > form.NAME_MAX:
        fail(errno.ENAMETOOLONG, name)


def new_name(stack: Stack, parent: Node, name: bytes) -> BranchDirectory:
    """The directory in the writable branch, ready for a new `name`: checked, and free. EROFS, EPERM, ENAMETOOLONG,
    ENOENT (the directory was removed), EEXIST."""
    stack.require_writable()
    check_name(name)
    if not parent.layers:
        fail(errno.ENOENT, name)
    if not stack.is_missing(parent, name):
        fail(errno.EEXIST, name)
    protection.refuse(stack, parent, protection.IMMUTABLE)
    return free_name(stack, parent, name)


def free_name(stack: Stack, parent: Node, name: bytes) -> BranchDirectory:
    """Give `parent` its part in the writable branch, with nothing in it at `name`, which the union does not show."""
    copyup.copy_up_directory(stack, parent)
    directory = stack.upper(parent)
    if name in directory:
        entry = directory.stat(name)
        if entry is not None and not form.is_overlay_whiteout(entry):
            fail(errno.EEXIST, name)  # somebody has made it behind our back
        whiteout.create(directory, name)
        order.whiteout_first(stack, directory, name)
        whiteout.drop_overlay(directory, name)
    return directory


class New(NamedTuple):
    """The node of what was made, held by the operation, and its status."""

    node: Node
    entry: os.stat_result


def create(stack: Stack, parent: Node, name: bytes, mode: int, uid: int, gid: int) -> tuple[New, int]:
    """A new regular file and a descriptor on it, open for reading and writing."""
    directory = new_name(stack, parent, name)
    if _is_callers(mode, uid, gid):
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=directory.fd)
    elif directory.branch.has_unnamed:
        fd = _linked(directory, name, mode, uid, gid)
    else:
        fd = _moved(directory, name, mode, uid, gid)
    try:
        appeared(stack, parent, name)
        return _adopted(stack, parent, name, os.fstat(fd)), fd
    except BaseException:
        os.close(fd)
        raise


def _linked(directory: BranchDirectory, name: bytes, mode: int, uid: int, gid: int) -> int:
    fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=directory.fd)
    try:
        _own(Place(fd, b""), directory, uid, gid, mode)
        files.link_fd(fd, directory.fd, name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _moved(directory: BranchDirectory, name: bytes, mode: int, uid: int, gid: int) -> int:
    made: list[int] = []

    def make(dirfd: int, new: bytes) -> None:
        made.append(os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=dirfd))

    try:
        _make_staged(directory, name, uid, gid, mode, make)
    except BaseException:
        for fd in made:
            os.close(fd)
        raise
    return made[0]


def tmpfile(stack: Stack, parent: Node, mode: int, uid: int, gid: int) -> tuple[Node, int]:
    """A new regular file without a name in `parent` (O_TMPFILE), with what it inherits there, and a descriptor on it,
    open for reading and writing. `link` gives it a name; until then it is an orphan with link count 0. EROFS, ENOENT.
    """
    stack.require_writable()
    if not parent.layers:
        fail(errno.ENOENT)
    protection.refuse(stack, parent, protection.IMMUTABLE)
    copyup.copy_up_directory(stack, parent)
    directory = stack.upper(parent)
    fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=directory.fd)
    try:
        _own(Place(fd, b""), directory, uid, gid, mode)
        return stack.adopt_unnamed(parent, fd), fd
    except BaseException:
        os.close(fd)
        raise


def mknod(stack: Stack, parent: Node, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> New:
    """A fifo, socket, device or empty file. A character device 0:0 is refused (EPERM): it is overlayfs's whiteout."""
    if stat.S_ISCHR(mode) and rdev == 0:
        fail(errno.EPERM, name, "a character device 0:0 would be a whiteout")
    directory = new_name(stack, parent, name)
    return _made(stack, parent, directory, name, uid, gid, mode, lambda fd, new: os.mknod(new, mode, rdev, dir_fd=fd))


def symlink(stack: Stack, parent: Node, name: bytes, target: bytes, uid: int, gid: int) -> New:
    directory = new_name(stack, parent, name)
    return _made(
        stack, parent, directory, name, uid, gid, stat.S_IFLNK | 0o777,
        lambda fd, new: os.symlink(target, new, dir_fd=fd),
    )  # fmt: skip


def mkdir(stack: Stack, parent: Node, name: bytes, mode: int, uid: int, gid: int) -> New:
    """A new directory; opaque where a whiteout hid something below, which must not shine through once it is gone."""
    directory = new_name(stack, parent, name)
    bits = mode & 0o7777
    mode = stat.S_IFDIR | bits
    if not directory.hides(name):
        return _made(stack, parent, directory, name, uid, gid, mode, lambda fd, new: os.mkdir(new, bits, dir_fd=fd))
    branch = directory.branch
    return _made(
        stack, parent, directory, name, uid, gid, mode,
        lambda fd, new: _make_opaque(branch, fd, new, bits), staged=True,
    )  # fmt: skip


def _make_opaque(branch: Branch, dirfd: int, name: bytes, bits: int) -> None:
    # Its marker is made in it: for that its owner has to be allowed to write to it.
    missing = stat.S_IRWXU & ~bits if branch.confined else 0
    os.mkdir(name, bits | missing, dir_fd=dirfd)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
    try:
        whiteout.mark_opaque(branch, fd)
        if missing:
            os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) & ~missing)
    finally:
        os.close(fd)


def link(stack: Stack, node: Node, parent: Node, name: bytes) -> None:
    """Another name for a file. ENOENT when its last name is gone."""
    while True:
        directory = new_name(stack, parent, name)
        protection.refuse(stack, node)
        if not copyup.copy_up(stack, node):
            break
    if node.pseudo_link is not None:
        stack.pseudo_links.follow_links(node.branch, node.pseudo_link)
    with place.held(place.of(stack, node)) as source:
        files.link_fd(source.fd, directory.fd, name)  # ENOENT when its last name is gone
    appeared(stack, parent, name)
    stack.give_name(node, parent, name)


def _is_callers(mode: int, uid: int, gid: int) -> bool:
    """Whether an entry that this process makes in place belongs to the caller, with the mode that was asked for: the
    group is his or the one that a set-group-ID parent hands down, and set-ID bits are not left to chance."""
    return uid == os.geteuid() and gid == os.getegid() and not mode & _SPECIAL_BITS


def _made(
    stack: Stack,
    parent: Node,
    directory: BranchDirectory,
    name: bytes,
    uid: int,
    gid: int,
    mode: int,
    make: Callable[[int, bytes], None],
    *,
    staged: bool = False,
) -> New:
    """What `make(directory's descriptor, name)` makes, in place if that is complete at once and not to be `staged`."""
    if not staged and _is_callers(mode, uid, gid):
        make(directory.fd, name)
    else:
        _make_staged(directory, name, uid, gid, mode, make)
    appeared(stack, parent, name)
    return _adopted(stack, parent, name, os.stat(name, dir_fd=directory.fd, follow_symlinks=False))


def _adopted(stack: Stack, parent: Node, name: bytes, entry: os.stat_result) -> New:
    return New(stack.adopt_new(parent, name, entry), entry)


def _make_staged(
    directory: BranchDirectory,
    name: bytes,
    uid: int,
    gid: int,
    mode: int,
    make: Callable[[int, bytes], None],
) -> None:
    branch = directory.branch
    new = branch.work_name()
    with _staging(directory) as staging:
        try:
            make(staging, new)
            _own(Place(staging, new), directory, uid, gid, mode)
            with _movable(branch, staging, new, mode):
                _move(staging, new, directory.fd, name)
        except BaseException:
            branch.discard_work(new)
            raise


def _move(src_dirfd: int, src: bytes, dst_dirfd: int, dst: bytes) -> None:
    """To a name that is free."""
    try:
        files.renameat2(src_dirfd, src, dst_dirfd, dst, consts.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A file system without flags. The name was free before, and nobody else takes it: the branch is locked.
        os.rename(src, dst, src_dir_fd=src_dirfd, dst_dir_fd=dst_dirfd)


@contextlib.contextmanager
def _movable(branch: Branch, dirfd: int, name: bytes, mode: int) -> Iterator[None]:
    """Around the move of what was made: of a directory it is a change, of its `..` (vfs_rename(), fs/namei.c)."""
    if not branch.confined or not stat.S_ISDIR(mode):
        yield
        return
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
    try:
        with branch.permitted(fd):
            yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _staging(directory: BranchDirectory) -> Iterator[int]:
    """A descriptor of the work area, or, for a parent with a default ACL, of a directory in it that has the same:
    what is made there inherits as it would in the parent."""
    branch = directory.branch
    try:
        acl = os.getxattr(files.fd_path(directory.fd), _DEFAULT_ACL)
    except OSError:
        yield branch.work_fd
        return
    name = branch.work_name()
    os.mkdir(name, 0o700, dir_fd=branch.work_fd)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=branch.work_fd)
    try:
        os.setxattr(fd, _DEFAULT_ACL, acl)
        yield fd
    finally:
        os.close(fd)
        branch.discard_work(name)


def _own(new: Place, directory: BranchDirectory, uid: int, gid: int, mode: int) -> None:
    """Give a new file its owner, and the group that a set-group-ID parent hands down (inode_init_owner(), fs/inode.c).

    chown(2) clears set-ID bits even for root, so they are set once more.
    """
    parent = os.fstat(directory.fd)
    inherits = parent.st_mode & stat.S_ISGID
    if inherits:
        gid = parent.st_gid
    current = new.stat()
    if (current.st_uid, current.st_gid) != (uid, gid):
        new.chown(uid, gid)
    if stat.S_ISDIR(mode):
        wanted = current.st_mode & 0o7777 | (stat.S_ISGID if inherits else 0) | mode & _SPECIAL_BITS
    else:
        wanted = current.st_mode & 0o7777 | mode & _SPECIAL_BITS
    if wanted != stat.S_IMODE(new.stat().st_mode) and not stat.S_ISLNK(mode):
        new.chmod(wanted)


def appeared(stack: Stack, parent: Node, name: bytes) -> None:
    """Note a new entry of the writable branch and drop the whiteout that it hides."""
    directory = stack.upper(parent)
    directory.add(name)
    try:
        if directory.hides(name):
            outlived.drop(stack, parent, name)
    except OSError:
        pass  # the entry hides it: a stale whiteout does no harm, and a failing disk must not undo the creation


