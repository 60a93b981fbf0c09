"""Paths inside a root directory that somebody else filled: nothing resolved here can leave the root.

A container's image, and volumes that another container is changing meanwhile, decide what a path means. So every
path is resolved by the kernel below a descriptor (openat2(2), RESOLVE_IN_ROOT), magic links are never followed, and
what was resolved is kept as a descriptor and never named again. CVE-2021-30465 and CVE-2024-45310 are what happens
otherwise.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from unionfs.linux import consts, files, mounts

# Where the kernel's own file systems go. A symbolic link there would move them (CVE-2019-19921, CVE-2023-27561).
_KERNEL_DIRECTORIES = (b"proc", b"sys", b"dev")


class Root:
    """A directory that stands for `/`. Not thread-safe; owns its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        os.close(self.fd)

    def open(self, path: str, flags: int = os.O_PATH) -> int:
        """A descriptor of what `path` is. ELOOP: a magic link, or a symbolic link on the way into /proc, /sys, /dev."""
        name = os.fsencode(path).lstrip(b"/") or b"."
        resolve = consts.RESOLVE_IN_ROOT | consts.RESOLVE_NO_MAGICLINKS
        if name.split(b"/", 1)[0] in _KERNEL_DIRECTORIES:
            resolve |= consts.RESOLVE_NO_SYMLINKS
        try:
            return files.openat2(self.fd, name, flags, resolve=resolve)
        except OSError as error:
            text = "it is, or leads through, a symbolic link that must not be there"
            reason = text if error.errno == errno.ELOOP else error.strerror
            raise OSError(error.errno, reason, path) from None

    def directory(self, path: str, mode: int = 0o755) -> int:
        """A descriptor of the directory `path`, made with its parents where they are missing."""
        return self._make(path, lambda parent, name: os.mkdir(name, mode, dir_fd=parent), os.O_DIRECTORY)

    def file(self, path: str) -> int:
        """A descriptor of what `path` is, not a directory, made as an empty file where it is missing."""
        return self._make(path, lambda parent, name: os.mknod(name, stat.S_IFREG | 0o644, dir_fd=parent), 0)

    def _make(self, path: str, make: Callable[[int, bytes], None], flags: int) -> int:
        try:
            return self.open(path, os.O_PATH | flags)
        except FileNotFoundError:
            pass
        above, _, name = path.rstrip("/").rpartition("/")
        parent = self.directory(above or "/")
        try:
            # EEXIST: someone was quicker, or a dangling symbolic link has the name; opening it tells which.
            try:
                make(parent, os.fsencode(name))
            except FileExistsError:
                pass
        finally:
            os.close(parent)
        return self.open(path, os.O_PATH | flags)

    def attach(self, mount_fd: int, path: str, target_fd: int) -> None:
        """Put the detached mount `mount_fd` on `target_fd`, which is what `path` was resolved to.

        ESTALE if `path` then does not show the mount: it was swapped for something else since it was resolved.
        """
        mounts.move_mount(
            mount_fd, b"", target_fd, b"", consts.MOVE_MOUNT_F_EMPTY_PATH | consts.MOVE_MOUNT_T_EMPTY_PATH
        )
        seen_fd = self.open(path)
        try:
            seen, ours = os.fstat(seen_fd), os.fstat(mount_fd)
        finally:
            os.close(seen_fd)
        if (seen.st_dev, seen.st_ino) != (ours.st_dev, ours.st_ino):
            raise OSError(errno.ESTALE, "it was replaced while it was being mounted on", path)
