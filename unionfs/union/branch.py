"""One branch: a directory of the stack, as a descriptor, with what the union may do to it.

After `open` no path is used again: everything goes through the descriptor, so the branch may be moved, covered by the
mount itself, or hidden in another mount namespace.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import Literal

from unionfs.linux import files
from unionfs.union import whiteout

Permission = Literal["rw", "ro", "rr"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Branch:
    """All fields are immutable after `open`, but for the work area's descriptor and counter (guarded by Stack.lock)."""

    def __init__(self, path: bytes, permission: Permission, fd: int, device: int, fsid: int, namespace: str) -> None:
        self.path = path
        self.permission: Permission = permission
        self.fd = fd
        self.device = device
        self.fsid = fsid
        self._namespace = namespace
        self._work_fd = -1
        self._serial = 0

    @classmethod
    def open(cls, path: bytes, permission: Permission) -> Branch:
        """Open the directory `path`. A writable branch is locked against a second union and checked for what
        copy-up needs: extended attributes and O_TMPFILE.

        Raises OSError(errno, text, path): ENOENT, ENOTDIR, EACCES; for `rw` also EROFS, EBUSY (another union writes
        to it), EOPNOTSUPP (no extended attributes, or no O_TMPFILE).
        """
        fd = os.open(path, _DIRECTORY)
        try:
            entry = os.fstat(fd)
            namespace = "trusted"
            if permission == "rw":
                _lock(fd, path)
                namespace = _check_writable(fd, path)
            return cls(path, permission, fd, entry.st_dev, os.fstatvfs(fd).f_fsid, namespace)
        except BaseException:
            os.close(fd)
            raise

    @property
    def writable(self) -> bool:
        return self.permission == "rw"

    def attribute(self, name: str) -> str:
        """The extended attribute that carries our `name`: in trusted.*, or user.* where trusted.* is not allowed."""
        return f"{self._namespace}.unionfs.{name}"

    # The work area: entries are made here, complete, and then renamed into place.

    @property
    def work_fd(self) -> int:
        """The work area's directory, made on first use so that a union never written to leaves no trace."""
        if self._work_fd < 0:
            try:
                os.mkdir(whiteout.WORK_AREA, 0o700, dir_fd=self.fd)
            except FileExistsError:
                pass  # left by a server that was killed; emptied by clean_work_area at mount
            self._work_fd = os.open(whiteout.WORK_AREA, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self.fd)
        return self._work_fd

    def work_name(self) -> bytes:
        """A name free in the work area, which nobody else writes to (the branch is locked)."""
        self._serial += 1
        return b"%d" % self._serial

    def discard_work(self, name: bytes) -> None:
        """Delete a tree in the work area; it is unreachable from the union, so a crash on the way loses nothing."""
        remove_tree(self.work_fd, name)

    def clean_work_area(self) -> None:
        """Delete what a killed server left in the work area, and the area itself: a layer at rest has none."""
        if self._work_fd >= 0:
            os.close(self._work_fd)
            self._work_fd = -1
        try:
            remove_tree(self.fd, whiteout.WORK_AREA)
        except FileNotFoundError:
            pass

    def close(self) -> None:
        if self.writable:
            try:
                self.clean_work_area()
            except OSError:
                pass  # a full or failing disk: the next mount cleans it
        os.close(self.fd)


def _lock(fd: int, path: bytes) -> None:
    """AUFS and overlayfs leave two writers of one branch undefined; here the second is refused. The lock goes with
    the descriptor, however the server ends."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "another union writes to this branch", path) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF):
            raise OSError(error.errno, error.strerror, path) from None


def _check_writable(fd: int, path: bytes) -> str:
    """The namespace for our attributes: "trusted", or "user" when trusted.* needs a privilege we lack."""
    try:
        unnamed = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise OSError(errno.EOPNOTSUPP, "the file system has no unnamed files (O_TMPFILE)", path) from None
        raise OSError(error.errno, error.strerror, path) from None
    try:
        for namespace in ("trusted", "user"):
            try:
                os.setxattr(unnamed, f"{namespace}.unionfs.origin", b"probe")
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                    raise OSError(error.errno, error.strerror, path) from None
            else:
                return namespace
    finally:
        os.close(unnamed)
    raise OSError(errno.EOPNOTSUPP, "the file system has no extended attributes", path)


def remove_tree(parent_fd: int, name: bytes) -> None:
    """Delete `name` and all below it, by descriptors, following no link and crossing no mount.

    Raises FileNotFoundError when there is no such name.
    """
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent_fd)
        return
    fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
    try:
        for child in os.listdir(files.fd_path(fd)):
            remove_tree(fd, child)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)
