"""Mount, the value that drivers answer with, and the functions that make trees of such values.

A driver returns Mount values and never mounts. A list of them is mounted in order on one target, each over the one
before; usually it has one element. The type says how:

    bind        source is a directory; options "rbind" (with what is mounted below it), "ro"
    overlay     the kernel's overlayfs; "lowerdir+=DIR" once a layer, top first, "upperdir=", "workdir=", with any
                names, and its other options (drivers.overlay_mount)
    unionfs     our own union; "br=/top=rw:/low=ro" as `unionfs mount -o` takes it (`branches` below makes it)
    others      a file system of the kernel on a device or dataset: Mount("ext4", "/dev/…", ("discard",)),
                Mount("zfs", "pool/…"). Options that are mount(2) flags are passed as flags, the rest as data

Needs CAP_SYS_ADMIN. Failures are OSError, which name the target and say what the kernel said, or
`drivers.errors.Unavailable` with the sentence of `unionfs mount`, or of a volatile overlay that a crash may have torn;
InUse for a tree that is busy.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from drivers import overlay_mount
from drivers.errors import InUse, Unavailable
from unionfs.linux import consts
from unionfs.linux import mounts as sys_mounts
from unionfs.transport import device
from unionfs.transport.unmount import unmount as unmount_union

# Options that are flags of mount(2), with what the file-descriptor calls name them (linux/mount.h).
_FLAGS = {
    "ro": (consts.MS_RDONLY, consts.MOUNT_ATTR_RDONLY),
    "nosuid": (consts.MS_NOSUID, consts.MOUNT_ATTR_NOSUID),
    "nodev": (consts.MS_NODEV, consts.MOUNT_ATTR_NODEV),
    "noexec": (consts.MS_NOEXEC, consts.MOUNT_ATTR_NOEXEC),
    "noatime": (consts.MS_NOATIME, consts.MOUNT_ATTR_NOATIME),
    "rw": (0, 0),
}

# What directories are called, in whatever place is for temporary files, that a tree is mounted at for a moment.
_MOUNTED = "fuse-aufs-mounted-"
_MOMENTARY = (_MOUNTED, "fuse-aufs-diff-")  # drivers.diff.snapshots


@dataclass(frozen=True)
class Mount:
    """One thing to mount: `options` are as in fstab(5), one to an element."""

    type: str
    source: str
    options: tuple[str, ...] = ()

    def describe(self) -> str:
        """A line for logs and `--debug`."""
        return f"{self.type} {self.source} ({','.join(self.options)})" if self.options else f"{self.type} {self.source}"


def mount_all(mounts: Sequence[Mount], target: str) -> None:
    """Mount each of `mounts`, in order, on the directory `target`. On failure what was mounted is unmounted again."""
    done = 0
    try:
        for mount in mounts:
            _MOUNTERS.get(mount.type, _mount_device)(mount, target)
            done += 1
    except BaseException:
        for _ in range(done):
            _unmount_top(os.path.realpath(target))
        raise


def unmount_all(target: str) -> None:
    """Unmount everything that is stacked on `target`; nothing mounted, or no such directory, is fine.

    Returns when the servers behind unionfs mounts have ended, so their branches are closed and complete.
    Raises InUse if the tree is busy (an open file, a working directory, something mounted below).
    """
    resolved = os.path.realpath(target)
    while _unmount_top(resolved):
        pass


@contextmanager
def mounted(mounts: Sequence[Mount]) -> Iterator[str]:
    """The tree of `mounts` at a temporary directory, for the time of the `with`."""
    import tempfile  # late: half of what importing this module would cost, and a container's start needs none of it

    target = tempfile.mkdtemp(prefix=_MOUNTED)
    try:
        mount_all(mounts, target)
        try:
            yield target
        finally:
            unmount_all(target)
    finally:
        os.rmdir(target)


def let_go_of_copies(*places: str) -> None:
    """Unmount, in a mount namespace that was just copied, what others have mounted for a moment: at `places`, and at
    mounted() trees.

    Unmounting it where it was mounted does not reach a copy, unless mounts are shared there (mount_namespaces(7)). The
    tree would stay in use for as long as the namespace is: its server does not end, its device cannot be removed.
    """
    resolved = set(map(os.path.realpath, places))
    for point in reversed(sys_mounts.mountinfo()):
        if point.target in resolved or os.path.basename(point.target).startswith(_MOMENTARY):
            sys_mounts.umount2(point.target, consts.UMOUNT_NOFOLLOW | consts.MNT_DETACH)


def branches(paths: Sequence[tuple[str, str]]) -> str:
    """The option of a "unionfs" mount for branches (path, permission), top first."""
    return "br=" + ":".join(f"{_escape(path, ':=,')}={permission}" for path, permission in paths)


def _mount_bind(mount: Mount, target: str) -> None:
    """Clone, set the flags, attach: there is no moment in which a read-only bind can be written through."""
    recursive = consts.AT_RECURSIVE if "rbind" in mount.options else 0
    tree = sys_mounts.open_tree(consts.AT_FDCWD, mount.source, consts.OPEN_TREE_CLONE | recursive)
    try:
        if attributes := _attributes(mount.options):
            sys_mounts.mount_setattr(tree, "", consts.AT_EMPTY_PATH | recursive, attr_set=attributes)
        _attach(tree, target)
    finally:
        os.close(tree)


def _mount_overlay(mount: Mount, target: str) -> None:
    words = [option for option in mount.options if option not in _FLAGS]
    if not overlay_mount.takes_layers():
        overlay_mount.mount_by_data(mount.source, words, target, _mount_flags(mount.options))
        return
    tree = overlay_mount.overlay_tree(mount.source, words, _attributes(mount.options))
    try:
        _attach(tree, target)
    finally:
        os.close(tree)


def _mount_unionfs(mount: Mount, target: str) -> None:
    """Run `unionfs mount`, which returns when the mount answers; the server is a process of its own.

    With -P the working directory is not searched for modules; the package is found where ours was, so an editable
    install, a source tree and a wheel all do.
    """
    import subprocess  # late, as in mounted()

    where = os.path.abspath(os.path.join(os.path.dirname(device.__file__), os.pardir, os.pardir))
    path = os.pathsep.join(filter(None, [where, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "unionfs", "mount", "-o", ",".join(mount.options), "--", target]
    # A file, not a pipe: its end is not for the server, which goes on, to decide.
    output = os.memfd_create("unionfs-mount")
    try:
        code = subprocess.call(
            command, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        lines = os.pread(output, 65536, 0).decode(errors="replace").strip().splitlines()
    finally:
        os.close(output)
    if code:
        raise Unavailable(lines[-1].removeprefix("unionfs: ") if lines else f"unionfs mount ended with {code}")


def _mount_device(mount: Mount, target: str) -> None:
    data = ",".join(option for option in mount.options if option not in _FLAGS)
    sys_mounts.mount(mount.source, target, mount.type, _mount_flags(mount.options), data or None)


_MOUNTERS = {"bind": _mount_bind, "overlay": _mount_overlay, "unionfs": _mount_unionfs}


def _attach(tree: int, target: str) -> None:
    try:
        sys_mounts.move_mount(tree, "", consts.AT_FDCWD, target, consts.MOVE_MOUNT_F_EMPTY_PATH)
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None


def _attributes(options: Sequence[str]) -> int:
    return sum(_FLAGS[option][1] for option in options if option in _FLAGS)


def _mount_flags(options: Sequence[str]) -> int:
    return sum(_FLAGS[option][0] for option in options if option in _FLAGS)


def _unmount_top(target: str) -> bool:
    """Unmount the topmost mount at `target`, an absolute path without symbolic links. False if there is none."""
    top = sys_mounts.mounted_at(target)
    if top is None:
        return False
    try:
        if top.fstype == device.FSTYPE:
            unmount_union(target)
        else:
            sys_mounts.umount2(target, consts.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise InUse(f"{target} is busy: something is open or mounted in it") from None
        if error.errno != errno.EINVAL:  # EINVAL: another process has unmounted it since we looked
            raise
    return True


def _escape(text: str, special: str) -> str:
    return "".join("\\" + c if c in special or c == "\\" else c for c in text)
