"""One branch: a directory of the stack, as a descriptor, with what the union may do to it.

After `open` no path is used again: everything goes through the descriptor, so the branch may be moved, covered by the
mount itself, or hidden in another mount namespace.

A branch is opened on a mount of its own where that is allowed, as overlayfs does (clone_private_mount(),
fs/namespace.c). No device in it can be opened there, whoever puts one in place of a file behind our back. And where the
branch is not to be written to, the mount is read-only: nothing can write into it by way of the union, a mistake of ours
or the kernel's included. A passthrough file is opened anew by the kernel with the flags of its user, and a second user
of the file may ask for more than the descriptor that was lent allows (fs/fuse/passthrough.c).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Collection, Iterator
from typing import Literal, NamedTuple

from unionfs.linux import consts, files, mounts
from unionfs.union import form, mark, own_mount, times
from unionfs.union.errors import fail
from unionfs.union.removal import remove_tree

Permission = Literal["rw", "ro", "rr"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Kept(NamedTuple):
    """Descriptors that a writable branch has besides its own: the directory on the mount that everybody sees, which is
    locked, and the mount of its own."""

    seen: int
    tree: int


class Branch:
    """One object for the life of the branch: nodes, caches and handles name a branch by it, whatever its position is.

    All fields are immutable after `open`, but for the work area's descriptor and counter (guarded by Stack.lock).
    `root_changed` is set by the Stack, and called when the root directory has other attributes than before."""

    def __init__(
        self, path: bytes, permission: Permission, fd: int, namespace: str, *, private: bool,
        unnamed: bool = True, kept: Kept | None = None,
    ) -> None:
        root = os.fstat(fd)
        self.path = path
        self.permission: Permission = permission
        self.writable = permission == "rw"
        self.private = private  # on a mount of its own, on which the kernel refuses to open devices
        self.has_unnamed = unnamed  # files: O_TMPFILE
        self.fd = fd
        self.device = root.st_dev
        self.root_inode = root.st_ino
        self.fsid = files.file_system_id(fd)
        self.durable = permission == "rw" and mounts.file_system_of(root.st_dev) not in ("tmpfs", "ramfs")
        # Whether the changes of names and attributes come to the disk in the order they were made in (union/order).
        kind = files.file_system_type(fd)
        self.keeps_order = not self.durable or kind != consts.BTRFS_SUPER_MAGIC
        # Another server decides there who may open what: one that was lent a file may be refused it, with EIO.
        self.on_fuse = kind == consts.FUSE_SUPER_MAGIC
        # The server may do no more than the owner of a file; else permissions are none to it (CAP_DAC_OVERRIDE).
        self.confined = os.geteuid() != 0
        self.root_changed: Callable[[], None] = lambda: None
        self._namespace = namespace
        self._kept = kept
        self._work_fd = -1
        self._serial = 0

    @classmethod
    def open(cls, path: bytes, permission: Permission) -> Branch:
        """Open the directory `path`. A writable branch is locked against a second union and checked for what
        copy-up needs: extended attributes, and names that begin with ".wh.".

        Raises OSError(errno, text, path): ENOENT, ENOTDIR, EACCES; for `rw` also EROFS, EBUSY (another union writes
        to it), EOPNOTSUPP (it lacks one of these).
        """
        with contextlib.ExitStack() as on_failure:
            seen = os.open(path, _DIRECTORY)
            on_failure.callback(os.close, seen)
            if permission == "rw":
                _lock(seen, path)
            tree = own_mount.make(seen, read_only=permission != "rw")
            kept, fd = None, seen
            if tree is not None:
                on_failure.callback(os.close, tree)
                fd = os.open(".", _DIRECTORY, dir_fd=tree)
                on_failure.callback(os.close, fd)
                # The lock keeps the mount that everybody sees busy, too: what is written to must not be unplugged.
                kept = Kept(seen, tree) if permission == "rw" else None
            namespace, unnamed = _check_writable(fd, path) if permission == "rw" else ("trusted", False)
            branch = cls(path, permission, fd, namespace, private=tree is not None, unnamed=unnamed, kept=kept)
            on_failure.pop_all()
        if tree is not None and kept is None:
            os.close(seen)
            os.close(tree)
        return branch

    @property
    def guarded(self) -> bool:
        """By its own mount, on which the kernel refuses to write."""
        return self.private and not self.writable

    def note_access(self, flags: Collection[str]) -> None:
        """Note times of access from now on as a mount with these `flags` of mount(8) does; if none is about them,
        as before. A branch that is guarded notes none ever. EPERM: that cannot be had here."""
        if not self.private:
            own_mount.check_access(self.fd, self.path, flags)
        elif self._kept is not None:
            own_mount.note_access(self._kept.tree, flags)

    def attribute(self, name: str) -> str:
        """The extended attribute that carries our `name`: in trusted.*, or user.* where trusted.* is not allowed."""
        return f"{self._namespace}.unionfs.{name}"

    def read_attribute(self, path: bytes, name: str) -> bytes | None:
        """What our attribute `name` of the file `path` says (links are not followed); None where it is not set, or not
        to be read: user.* is for who may read the file (xattr(7))."""
        try:
            return os.getxattr(path, self.attribute(name), follow_symlinks=False)
        except OSError as error:
            # EPERM: user.* of a link or a device.
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
                return None
            raise

    def write_attribute(self, path: bytes, name: str, value: bytes) -> None:
        """Set our attribute `name` of the file `path`, also of one that its owner may not write to."""
        try:
            os.setxattr(path, self.attribute(name), value, follow_symlinks=False)
        except PermissionError as error:
            if error.errno != errno.EACCES:
                raise
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                with self.permitted(fd):
                    os.setxattr(files.fd_path(fd), self.attribute(name), value)
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def permitted(self, fd: int) -> Iterator[None]:
        """Around a change by the union itself of what its owner may not write to, who is all that the server is: he may
        meanwhile. Nobody sees it but after a crash. Not where he could not give it its mode again: chmod(2) takes the
        set-group-ID bit if he is not in the file's group."""
        if not self.confined:
            yield
            return
        entry = os.fstat(fd)
        mode = stat.S_IMODE(entry.st_mode)
        wanted = mode | stat.S_IWUSR | (stat.S_IXUSR if stat.S_ISDIR(entry.st_mode) else 0)
        lost = mode & stat.S_ISGID and entry.st_gid not in (os.getegid(), *os.getgroups())
        if wanted == mode or lost or entry.st_uid != os.geteuid():
            yield
            return
        os.chmod(files.fd_path(fd), wanted)
        try:
            yield
        finally:
            os.chmod(files.fd_path(fd), mode)

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Around a change in the root directory that the union does not show."""
        try:
            with times.kept(self.fd):
                yield
        finally:
            self.root_changed()

    # The work area: entries are made here, complete, and then renamed into place.

    @property
    def work_fd(self) -> int:
        """The work area's directory, made on first use so that a union never written to leaves no trace."""
        if self._work_fd < 0:
            with self.unseen():
                try:
                    os.mkdir(form.WORK_AREA, 0o700, dir_fd=self.fd)
                except FileExistsError:  # there was none when the union began: somebody else's
                    remove_tree(self.fd, form.WORK_AREA)
                    os.mkdir(form.WORK_AREA, 0o700, dir_fd=self.fd)
            fd = os.open(form.WORK_AREA, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self.fd)
            try:
                if os.fstat(fd).st_uid != os.geteuid():
                    fail(errno.ESTALE, form.WORK_AREA, "somebody else put his directory in place of the work area")
                _inherit_nothing(fd)
            except BaseException:
                os.close(fd)
                raise
            self._work_fd = fd
        return self._work_fd

    def work_name(self) -> bytes:
        """A name free in the work area, which nobody else writes to (the branch is locked)."""
        self._serial += 1
        return b"%d" % self._serial

    def fresh_file(self, mode: int) -> tuple[int, bytes | None]:
        """A new regular file, open for reading and writing, and its name in the work area, None if it needs none.
        One with a name is to be moved into place, or discarded."""
        if self.has_unnamed:
            return os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self.work_fd), None
        name = self.work_name()
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, mode, dir_fd=self.work_fd), name

    def discard_work(self, name: bytes) -> None:
        """Delete a tree in the work area, if it is there. It is unreachable from the union, so a failure loses nothing:
        the next mount cleans up."""
        with contextlib.suppress(OSError):
            remove_tree(self.work_fd, name)

    def clean_work_area(self) -> None:
        """Delete what a killed server left in the work area, and the area itself: a layer at rest has none."""
        if self._work_fd >= 0:
            os.close(self._work_fd)
            self._work_fd = -1
        with self.unseen(), contextlib.suppress(FileNotFoundError):
            remove_tree(self.fd, form.WORK_AREA)

    def close(self) -> None:
        if self.writable:
            try:
                self.clean_work_area()
            except OSError:
                pass  # a full or failing disk: the next mount cleans it
        os.close(self.fd)
        for fd in self._kept or ():
            os.close(fd)


def _inherit_nothing(fd: int) -> None:
    """Take away what a directory hands down to what is made in it, and may have got from the branch's root itself: a
    default ACL, and with the set-group-ID bit the group."""
    os.fchmod(fd, 0o700)
    for acl in ("system.posix_acl_default", "system.posix_acl_access"):
        try:
            os.removexattr(fd, acl)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise


def _lock(fd: int, path: bytes) -> None:
    """AUFS and overlayfs leave two writers of one branch undefined; here the second is refused. The lock goes with
    the descriptor, however the server ends."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(errno.EBUSY, path, "another union writes to this branch")
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF):
            raise OSError(error.errno, error.strerror, path) from None


# What a file system says that does not have something, in whatever words.
_LACKING = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.EPERM, errno.ENOSYS)


def _check_writable(fd: int, path: bytes) -> tuple[str, bool]:
    """The namespace for our attributes, "trusted", or "user" when trusted.* needs a privilege we lack; whether there
    are unnamed files (O_TMPFILE). EOPNOTSUPP where something is missing that no union can do without."""
    point = mounts.mount_showing(os.fstat(fd).st_dev)
    where = "the file system here" if point is None else f"the file system here ({point.fstype})"
    reserved = f"{where} keeps names that begin with {os.fsdecode(form.PREFIX)} for itself, and so do we"
    if point is not None and mark.of(point) is not None:
        fail(errno.EOPNOTSUPP, path, f"{reserved}: it is a union")
    with contextlib.ExitStack() as at_end:
        try:
            probe, unnamed = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=fd), True
        except OSError as error:
            if error.errno not in _LACKING:
                raise OSError(error.errno, error.strerror, path) from None
            try:
                probe, unnamed = at_end.enter_context(_probe(fd)), False
            except OSError as error:
                if error.errno in (*_LACKING, errno.ENOENT):
                    fail(errno.EOPNOTSUPP, path, reserved)
                raise OSError(error.errno, error.strerror, path) from None
        at_end.callback(os.close, probe)
        for namespace in ("trusted", "user"):
            try:
                os.setxattr(probe, f"{namespace}.unionfs.origin", b"probe")
            except OSError as error:
                if error.errno not in _LACKING:
                    raise OSError(error.errno, error.strerror, path) from None
            else:
                return namespace, unnamed
    fail(errno.EOPNOTSUPP, path, f"{where} has no extended attributes")


@contextlib.contextmanager
def _probe(fd: int) -> Iterator[int]:
    """A file with a name of ours. It is in the work area, which nobody else has: the branch is locked."""
    with times.kept(fd):
        with contextlib.suppress(FileNotFoundError):
            remove_tree(fd, form.WORK_AREA)
        os.mkdir(form.WORK_AREA, 0o700, dir_fd=fd)
        try:
            name = os.path.join(form.WORK_AREA, form.whiteout_of(b"probe"))
            yield os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
        finally:
            remove_tree(fd, form.WORK_AREA)
