"""Paths inside a root directory that somebody else filled: nothing resolved here can leave the root.

A container's image, and volumes that another container is changing meanwhile, decide what a path means. So every
path is resolved by the kernel below a descriptor (openat2(2), RESOLVE_IN_ROOT), magic links are never followed, and
what was resolved is kept as a descriptor and never named again. CVE-2021-30465 and CVE-2024-45310 are what happens
otherwise. What is missing is made, and where a link's target is missing that is: inside the root, as runc has it.

What is mounted in the root already is part of it. A link of the image's may lead into a volume, as /var/run leads to a
/run of the user's, but not into a file system of the kernel's: nobody but the configuration decides what covers
/proc/sys, and what is made in a cgroup.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from unionfs.linux import consts, files, mounts

# Where the kernel's own file systems go. A symbolic link there would move them (CVE-2019-19921, CVE-2023-27561).
_KERNEL_DIRECTORIES = (b"proc", b"sys", b"dev")
_MOST_LINKS = 40  # that are followed to what is to be made, as in one path of the kernel's (path_resolution(7))
_MOST_STEPS = 8192  # to what is to be made: two for each part of the longest path, and as many for links
# Their types as statfs(2) has them (linux/magic.h): what is in them are the kernel's own objects.
_KERNEL_TYPES = frozenset({
    0x9FA0, 0x62656572, 0x27E0EB, 0x63677270,  # proc, sysfs, cgroup, cgroup2
    0x1CD1, 0x19800202,  # devpts, mqueue
    0x64626720, 0x74726163, 0x73636673, 0x62656570,  # debugfs, tracefs, securityfs, configfs
    0xCAFE4A11, 0x6165676C, 0xDE5E81E4, 0x65735543, 0x42494E4D,  # bpf, pstore, efivarfs, fusectl, binfmt_misc
    0xF97CFF8C, 0x43415D53, 0x5A3C69F0, 0x6E736673,  # selinux, smack, apparmor, nsfs
})  # fmt: skip


_Make = Callable[[int, bytes], None]


class _Wanted(NamedTuple):
    path: str
    make: _Make
    flags: int
    links: int = 0  # how many with a missing target have led here


class Root:
    """A directory that stands for `/`. Not thread-safe; owns its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._places: list[str] = []  # where something was mounted, as it was asked for

    def close(self) -> None:
        os.close(self.fd)

    def open(self, path: str, flags: int = os.O_PATH) -> int:
        """A descriptor of what `path` is. ELOOP: a magic link, or a symbolic link on the way into /proc, /sys, /dev.
        EXDEV: it leads into a file system of the kernel's, and is not said to be in what is mounted there."""
        return self._open(path, flags, led=False)

    def _open(self, path: str, flags: int, *, led: bool) -> int:
        """`led`: a link of the image's has that path, and it is nothing that the configuration says."""
        name = os.fsencode(path).lstrip(b"/") or b"."
        resolve = consts.RESOLVE_IN_ROOT | consts.RESOLVE_NO_MAGICLINKS
        literally = not led and name.split(b"/", 1)[0] in _KERNEL_DIRECTORIES
        if literally:
            resolve |= consts.RESOLVE_NO_SYMLINKS
        try:
            fd = files.openat2(self.fd, name, flags, resolve=resolve)
        except OSError as error:
            text = "it is, or leads through, a symbolic link that must not be there"
            reason = text if error.errno == errno.ELOOP else error.strerror
            raise OSError(error.errno, reason, path) from None
        if not literally and self._is_led_astray(fd, "" if led else path):
            os.close(fd)
            raise OSError(errno.EXDEV, "it leads into a file system of the kernel's", path)
        return fd

    def _is_led_astray(self, fd: int, path: str) -> bool:
        if any(path == place or path.startswith(f"{place}/") for place in self._places):
            return False
        # Most of what is looked at is the root's own; a union's server need not be asked for its type.
        return os.fstat(fd).st_dev != os.fstat(self.fd).st_dev and files.file_system_type(fd) in _KERNEL_TYPES

    def directory(self, path: str) -> int:
        """A descriptor of the directory `path`, made with its parents where they are missing."""
        return self._make(path, _make_directory, os.O_DIRECTORY)

    def file(self, path: str) -> int:
        """A descriptor of what `path` is, made as an empty file where it is missing. EISDIR for a directory."""
        fd = self._make(path, _make_file, 0)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EISDIR, "a directory is there, and what is to be put there is none", path)
        return fd

    def _make(self, path: str, make: _Make, flags: int) -> int:
        """The names are the image's: they, and whoever takes away what was made, have no more than _MOST_STEPS."""
        wanted = [_Wanted(path, make, flags)]  # each for the one before it: a directory above, or a link's target
        for _ in range(_MOST_STEPS):
            one = wanted[-1]
            fd = self._found(one)
            if fd is not None:
                wanted.pop()
                if not wanted:
                    return fd
                os.close(fd)
                continue
            above, _, name = one.path.rstrip("/").rpartition("/")
            directory = _Wanted(above or "/", _make_directory, os.O_DIRECTORY, one.links)
            parent = self._found(directory)
            if parent is None:
                wanted.append(directory)
                continue
            try:
                target = _make_or_read(parent, os.fsencode(name), one.make)
            except OSError as error:
                raise OSError(error.errno, error.strerror, one.path) from None
            finally:
                os.close(parent)
            if target:
                led = os.path.join(directory.path, os.fsdecode(target))
                wanted.append(_Wanted(led, one.make, one.flags, one.links + 1))
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

    def _found(self, one: _Wanted) -> int | None:
        try:
            return self._open(one.path, os.O_PATH | one.flags, led=one.links > 0)
        except FileNotFoundError:
            if one.links == _MOST_LINKS:  # somebody changes them meanwhile: the kernel would have counted them
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), one.path) from None
            return None

    def attach(self, mount_fd: int, path: str, target_fd: int) -> None:
        """Put the detached mount `mount_fd` on `target_fd`, which is what `path` was resolved to.

        ESTALE if `path` then does not show the mount: it was swapped for something else since it was resolved.
        """
        mounts.move_mount(
            mount_fd, b"", target_fd, b"", consts.MOVE_MOUNT_F_EMPTY_PATH | consts.MOVE_MOUNT_T_EMPTY_PATH
        )
        self._places.append(path)
        seen_fd = self.open(path)
        try:
            seen, ours = os.fstat(seen_fd), os.fstat(mount_fd)
        finally:
            os.close(seen_fd)
        if (seen.st_dev, seen.st_ino) != (ours.st_dev, ours.st_ino):
            raise OSError(errno.ESTALE, "it was replaced while it was being mounted on", path)


def _make_directory(parent: int, name: bytes) -> None:
    os.mkdir(name, 0o755, dir_fd=parent)


def _make_file(parent: int, name: bytes) -> None:
    os.mknod(name, stat.S_IFREG | 0o644, dir_fd=parent)


def _make_or_read(parent: int, name: bytes, make: _Make) -> bytes:
    """Make what seems to be missing; where a symbolic link has its name, the link's target, else nothing."""
    try:
        make(parent, name)
    except FileExistsError:
        try:
            return os.readlink(name, dir_fd=parent)
        except OSError:
            pass  # not a link: somebody was quicker; opening it tells what it is
    return b""
