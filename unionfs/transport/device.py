"""Mounting a /dev/fuse descriptor, at a mount point or at none, and taking the mount away again.

Root mounts by mount(2) and fsmount(2), so that a refusal has an errno and nothing else writes to stderr; others through
fusermount3(1), and at a mount point only.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
from collections.abc import Collection
from typing import NamedTuple

from unionfs.linux import consts, mounts
from unionfs.linux.mounts import MountPoint
from unionfs.union import mark


class Shown(NamedTuple):
    """What the table of mounts calls a mount: any source, and a type behind "fuse." that is a word; both of at most 255
    bytes, and not empty."""

    source: str = "unionfs"
    subtype: str = "unionfs"

    @property
    def fstype(self) -> str:
        return f"fuse.{self.subtype}"


AS_EVER = Shown()

# The kernel then passes mode and umask apart, so that a default ACL can take the umask's place
# (fs/fuse/inode.c, dont_mask).
_MS_POSIXACL = 1 << 16

_MS = {
    "ro": consts.MS_RDONLY,
    "nosuid": consts.MS_NOSUID,
    "nodev": consts.MS_NODEV,
    "noexec": consts.MS_NOEXEC,
    "sync": consts.MS_SYNCHRONOUS,
    "dirsync": consts.MS_DIRSYNC,
    "nosymfollow": consts.MS_NOSYMFOLLOW,
    "noatime": consts.MS_NOATIME,
    "nodiratime": consts.MS_NODIRATIME,
    "relatime": consts.MS_RELATIME,
    "strictatime": consts.MS_STRICTATIME,
}

# What of these belongs to the mount, and so is for fsmount(2); the rest is the file system's.
_ATTRIBUTES = {
    "ro": consts.MOUNT_ATTR_RDONLY,
    "nosuid": consts.MOUNT_ATTR_NOSUID,
    "nodev": consts.MOUNT_ATTR_NODEV,
    "noexec": consts.MOUNT_ATTR_NOEXEC,
    "nosymfollow": consts.MOUNT_ATTR_NOSYMFOLLOW,
    "noatime": consts.MOUNT_ATTR_NOATIME,
    "nodiratime": consts.MOUNT_ATTR_NODIRATIME,
    "relatime": 0,  # the default
    "strictatime": consts.MOUNT_ATTR_STRICTATIME,
}
_OF_FILE_SYSTEM = ("ro", "sync", "dirsync")

# Always so, or unknown to fusermount3 and so by then with the branches (Branch.note_access).
_NOT_FOR_FUSERMOUNT = {"nosuid", "nodev", "nodiratime", "relatime", "strictatime"}


def identity(device: str, number: int | str) -> str:
    """What tells a mount from all others there are and were, in whatever namespace it is seen.

    The kernel hands a device number out again as soon as it is free, a mount id belongs to one place of the mount, and
    its server may be stopped. So every mount of it shows a mark (union/mark.py).
    """
    return f"{device}.{number}"


def identity_of(point: MountPoint) -> str | None:
    """None if it is not a union's."""
    its = mark.of(point)
    return None if its is None else identity(point.device, its)


def mount_flags(flags: Collection[str]) -> int:
    """MS_* of those flags of mount(8) that mount(2) takes."""
    return sum(_MS[flag] for flag in flags)


def attach(mountpoint: str, flags: Collection[str], allow_other: bool, max_read: int, shown: Shown) -> int:
    """Mount with the `flags` of mount(8) (keys of _MS) and return the descriptor to serve.

    Until INIT is answered on it, users of the mount wait. Permission checks are the kernel's work
    (default_permissions). Root's mount is open to all users, with suid programs and devices, as a kernel file
    system's would be. Raises OSError with what to do in its text.
    """
    if os.geteuid() == 0:
        return mount(mountpoint, flags, max_read, shown)
    return _fusermount(mountpoint, flags, allow_other, max_read, shown)


def make_detached(flags: Collection[str], max_read: int, shown: Shown) -> tuple[int, int]:
    """The same as a mount that is attached nowhere: the descriptor to serve, and one of the mount.

    Nobody finds it by a name, and it ends with the last descriptor of it. Raises OSError as attach() does. The umask is
    applied by the kernel unless INIT asks for FUSE_DONT_MASK: fsconfig(2) has no SB_POSIXACL.
    """
    fd = _open_device()
    try:
        context = mounts.fsopen("fuse")
        try:
            for key, value in {
                "source": shown.source, "subtype": shown.subtype, "fd": str(fd), "rootmode": f"{stat.S_IFDIR:o}",
                "user_id": "0", "group_id": "0", "max_read": str(max_read),
            }.items():  # fmt: skip
                mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, key, value)
            for flag in ("default_permissions", "allow_other", *(flag for flag in flags if flag in _OF_FILE_SYSTEM)):
                mounts.fsconfig(context, consts.FSCONFIG_SET_FLAG, flag)
            mounts.fsconfig(context, consts.FSCONFIG_CMD_CREATE)
            return fd, mounts.fsmount(context, sum(_ATTRIBUTES.get(flag, 0) for flag in flags))
        finally:
            os.close(context)
    except OSError as error:
        os.close(fd)
        raise _refused(error, "detached") from None


def detach(mountpoint: str, *, lazy: bool = False) -> None:
    """Take the topmost mount at `mountpoint` away. EBUSY when it is in use and not `lazy`."""
    if os.geteuid() == 0:
        mounts.umount2(mountpoint, consts.UMOUNT_NOFOLLOW | (consts.MNT_DETACH if lazy else 0))
    else:
        reason = _run_fusermount(["-u", "-q", *(["-z"] if lazy else []), "--", mountpoint])
        if reason:
            code = errno.EBUSY if "busy" in reason.lower() else errno.EPERM
            raise OSError(code, reason, mountpoint)


def mount(mountpoint: str, flags: Collection[str], max_read: int, shown: Shown) -> int:
    """attach() for root."""
    fd = _open_device()
    try:
        data = f"fd={fd},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,default_permissions,allow_other"
        data += f",max_read={max_read}"
        mounts.mount(shown.source, mountpoint, shown.fstype, mount_flags(flags) | _MS_POSIXACL, data)
    except OSError as error:
        os.close(fd)
        raise _refused(error, mountpoint) from None
    return fd


def _open_device() -> int:
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        remedy = {errno.ENOENT: "not found: try 'modprobe fuse'", errno.ENODEV: "no driver: try 'modprobe fuse'"}
        text = remedy.get(error.errno or 0, f"cannot be opened ({error.strerror}); a container needs it as a device")
        raise OSError(error.errno, text, "/dev/fuse") from None


def _refused(error: OSError, place: str) -> OSError:
    remedy = {
        errno.EPERM: "not allowed to mount here: CAP_SYS_ADMIN is needed",
        errno.ENODEV: "the kernel has no FUSE: try 'modprobe fuse'",
    }
    text = remedy.get(error.errno or 0, f"cannot be mounted ({error.strerror})")
    return OSError(error.errno, text, place)


def _fusermount(mountpoint: str, flags: Collection[str], allow_other: bool, max_read: int, shown: Shown) -> int:
    if "nosymfollow" in flags:
        raise OSError(errno.EPERM, "nosymfollow takes root: fusermount3 does not know it", mountpoint)
    source = shown.source.replace("\\", r"\\").replace(",", r"\,")  # as do_mount() of fusermount.c undoes
    words = [f"fsname={source}", f"subtype={shown.subtype}", "default_permissions", f"max_read={max_read}"]
    words += [flag for flag in flags if flag not in _NOT_FOR_FUSERMOUNT]
    if allow_other:
        words.append("allow_other")
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            reason = _run_fusermount(["-o", ",".join(words), "--", mountpoint], commfd=theirs.fileno())
        if reason:
            raise OSError(errno.EPERM, f"{reason}; mount as root, or change what it names", mountpoint)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        if not fds:
            raise OSError(errno.EPROTO, "fusermount3 gave no descriptor; mount as root", mountpoint)
    os.set_inheritable(fds[0], False)
    return fds[0]


def _run_fusermount(arguments: list[str], commfd: int = -1) -> str:
    """Empty when it succeeded, else its reason. `_FUSE_COMMFD` is how libfuse asks it for the descriptor."""
    environment = dict(os.environ)
    if commfd >= 0:
        environment["_FUSE_COMMFD"] = str(commfd)
    try:
        result = subprocess.run(
            ["fusermount3", *arguments],
            env=environment,
            pass_fds=[commfd] if commfd >= 0 else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        return "fusermount3 is not installed: install the package fuse3"
    except OSError as error:  # no process to be had, or no descriptor
        return f"fusermount3 cannot be run: {error.strerror}"
    if result.returncode == 0:
        return ""
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"fusermount3 failed with exit code {result.returncode}"
