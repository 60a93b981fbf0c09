"""Mount, the value that drivers answer with, and the trees that are made of such values.

A driver returns Mount values and never mounts. A list of them is mounted in order on one target, each over the one
before; usually it has one element. The type says how:

    bind        source is a directory; options "rbind" (with what is mounted below it), "ro"
    overlay     the kernel's overlayfs; "lowerdir+=DIR" once a layer, top first, "upperdir=", "workdir=", with any
                names, and its other options (drivers.mounts.overlayfs)
    unionfs     our own union; "br=/top=rw:/low=ro" as `unionfs mount -o` takes it (`branches` below makes it)
    others      a file system of the kernel on a device or dataset: Mount("ext4", "/dev/…", ("discard",)),
                Mount("zfs", "pool/…"). Options that are flags of a mount are such, the rest is the file system's

A tree is first a *detached* mount: it is attached nowhere and in no mount namespace that anybody could enter, so it has
no name, no copy of it gets into a namespace that is made meanwhile, and it ends with the last descriptor of it, however
the process that has it ends. There are two uses of that, and no third:

    private     what we look into or write to ourselves, without set-user-ID programs, devices and programs at all
    open_tree   what becomes a container's root: with all that, attached in the container's mount namespace

mount_all() is for who wants a tree at a place of the file system: it attaches what open_tree() gives.

Needs CAP_SYS_ADMIN. Failures are OSError, which say what the kernel said, or `drivers.errors.Unavailable` with the
sentence of `unionfs mount`, or of a volatile overlay that a crash may have torn; InUse for a tree that is busy.
"""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from drivers.errors import InUse, Unavailable
from drivers.mounts import overlayfs
from unionfs.linux import consts
from unionfs.linux import mounts as sys_mounts
from unionfs.transport import device
from unionfs.transport.unmount import DEADLINE_SECONDS
from unionfs.transport.unmount import unmount as unmount_union

# Options that are the mount's, and not its file system's.
_ATTRIBUTES = {
    "ro": consts.MOUNT_ATTR_RDONLY,
    "nosuid": consts.MOUNT_ATTR_NOSUID,
    "nodev": consts.MOUNT_ATTR_NODEV,
    "noexec": consts.MOUNT_ATTR_NOEXEC,
    "noatime": consts.MOUNT_ATTR_NOATIME,
    "rw": 0,
}
_HURRIED_SECONDS = 2.0

_HARMLESS = consts.MOUNT_ATTR_NOSUID | consts.MOUNT_ATTR_NODEV | consts.MOUNT_ATTR_NOEXEC


@dataclass(frozen=True)
class Mount:
    """One thing to mount: `options` are as in fstab(5), one to an element."""

    type: str
    source: str
    options: tuple[str, ...] = ()

    def describe(self) -> str:
        """A line for logs and `--debug`."""
        return f"{self.type} {self.source} ({','.join(self.options)})" if self.options else f"{self.type} {self.source}"


class Tree:
    """A detached mount, and the process that serves it if there is one. `fd` is a descriptor of its root (O_PATH).

    What is attached of it (attach(), or move_mount(2) of `fd`) goes on after release() and leave(); what is attached
    nowhere ends then. A child of this process that has not called execve(2) yet holds it too. Not for use by several
    threads.
    """

    def __init__(self, fd: int, server: int = -1) -> None:
        """`fd` and `server`, a pidfd, are the tree's from now on."""
        self.fd = fd
        self._server = server

    def attach(self, target: str) -> None:
        """At the directory `target`, over what is there. Raises OSError, which names the target."""
        try:
            sys_mounts.move_mount(self.fd, "", consts.AT_FDCWD, target, consts.MOVE_MOUNT_F_EMPTY_PATH)
        except OSError as error:
            raise OSError(error.errno, error.strerror, target) from None

    def release(self) -> None:
        """Close the descriptor. Twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def leave(self) -> None:
        """release() of a tree whose end is somebody else's matter: unmount_all()'s. Twice is fine."""
        self.release()
        if self._server >= 0:
            os.close(self._server)
            self._server = -1

    def close(self, patience: float = DEADLINE_SECONDS) -> None:
        """release(), and return when the tree has ended: its server's branches are closed then and complete.

        Raises InUse when that takes more than `patience` seconds: somewhere it is attached, or a file is open in it.
        Twice is fine.
        """
        self.release()
        ended = self._server < 0 or _ended(self._server, patience)
        self.leave()
        if not ended:
            raise InUse("a union's server has not ended: its mount is still attached, or something is open in it")

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        """An error that is on its way is what there is to be told, and a signal that is one may have come between a
        descriptor's opening and its name: then nothing of ours is to wait for it long."""
        if error is None:
            self.close()
            return
        with suppress(InUse):
            self.close(_HURRIED_SECONDS)


def open_tree(mounts: Sequence[Mount]) -> Tree:
    """The tree of `mounts`: of the last of them, which hides the others."""
    mount = mounts[-1]
    return _MAKERS.get(mount.type, _device)(mount)


@contextmanager
def private(mounts: Sequence[Mount], *, read_only: bool = False) -> Iterator[int]:
    """A descriptor of the root directory of the tree of `mounts`, which nobody else can find or enter.

    With nosuid, nodev and noexec, and ro if that is asked for. At the end of the `with` it has ended, as after
    Tree.close(), unless something in it is still open: InUse then, of a union.
    """
    with open_tree(mounts) as tree:
        attributes = _HARMLESS | (consts.MOUNT_ATTR_RDONLY if read_only else 0)
        sys_mounts.mount_setattr(tree.fd, "", consts.AT_EMPTY_PATH | consts.AT_RECURSIVE, attr_set=attributes)
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree.fd)
        try:
            yield root
        finally:
            os.close(root)


def mount_all(mounts: Sequence[Mount], target: str) -> None:
    """Mount each of `mounts`, in order, on the directory `target`. On failure what was mounted is unmounted again."""
    done = 0
    try:
        for mount in mounts:
            tree = open_tree([mount])
            try:
                tree.attach(target)
            finally:
                tree.leave()
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


def branches(paths: Sequence[tuple[str, str]]) -> str:
    """The option of a "unionfs" mount for branches (path, permission), top first."""
    return "br=" + ":".join(f"{_escape(path, ':=,')}={permission}" for path, permission in paths)


def _bind(mount: Mount) -> Tree:
    """Nothing is ever seen of a read-only one that could be written through; nor does it get or give what is mounted
    elsewhere: a copy of a shared mount is one of its peers until it is made private."""
    recursive = consts.AT_RECURSIVE if "rbind" in mount.options else 0
    fd = sys_mounts.open_tree(consts.AT_FDCWD, mount.source, consts.OPEN_TREE_CLONE | recursive)
    try:
        sys_mounts.mount_setattr(
            fd, "", consts.AT_EMPTY_PATH | recursive, attr_set=_attributes(mount.options), propagation=consts.MS_PRIVATE
        )
    except BaseException:
        os.close(fd)
        raise
    return Tree(fd)


def _overlay(mount: Mount) -> Tree:
    words = [option for option in mount.options if option not in _ATTRIBUTES]
    return Tree(overlayfs.overlay_tree(mount.source, words, _attributes(mount.options)))


def _union(mount: Mount) -> Tree:
    """Run `unionfs mount`, which returns when the mount answers; the server is a process of its own.

    With -P the working directory is not searched for modules; the package is found where ours was, so an editable
    install, a source tree and a wheel all do.
    """
    import socket  # late: half of what importing this module would cost, and other drivers need none of it
    import subprocess

    from unionfs.transport import delivery

    where = os.path.abspath(os.path.join(os.path.dirname(device.__file__), os.pardir, os.pardir))
    path = os.pathsep.join(filter(None, [where, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "unionfs", "mount", "-o", ",".join(mount.options), "--hand-over"]
    # A file, not a pipe: its end is not for the server, which goes on, to decide.
    output = os.memfd_create("unionfs-mount")
    ours, theirs = socket.socketpair()
    with ours:
        try:
            with theirs:
                code = subprocess.call(
                    [*command, str(theirs.fileno())], env={**os.environ, "PYTHONPATH": path},
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[theirs.fileno()],
                )  # fmt: skip
            lines = os.pread(output, 65536, 0).decode(errors="replace").strip().splitlines()
        finally:
            os.close(output)
        if code:
            raise Unavailable(lines[-1].removeprefix("unionfs: ") if lines else f"unionfs mount ended with {code}")
        return Tree(*delivery.receive(ours))


def _device(mount: Mount) -> Tree:
    try:
        context = sys_mounts.fsopen(mount.type)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise Unavailable(f"this kernel has no {mount.type}: modprobe {mount.type}") from None
        raise
    try:
        sys_mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, "source", mount.source)
        for option in mount.options:
            key, equals, value = option.partition("=")
            if equals:
                sys_mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, key, value)
            elif option == "ro" or option not in _ATTRIBUTES:
                sys_mounts.fsconfig(context, consts.FSCONFIG_SET_FLAG, option)
        sys_mounts.fsconfig(context, consts.FSCONFIG_CMD_CREATE)
        return Tree(sys_mounts.fsmount(context, _attributes(mount.options)))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            raise Unavailable(
                f"{mount.describe()} cannot be mounted, for it is missing: is its disk there, and its pool imported?"
            ) from None
        raise OSError(error.errno, error.strerror, mount.source) from None
    finally:
        os.close(context)


_MAKERS = {"bind": _bind, "overlay": _overlay, "unionfs": _union}


def _ended(server: int, patience: float = DEADLINE_SECONDS) -> bool:
    poll = select.poll()  # not select(2): a descriptor may be beyond 1023
    poll.register(server, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def _attributes(options: Sequence[str]) -> int:
    return sum(_ATTRIBUTES.get(option, 0) for option in options)


def _unmount_top(target: str) -> bool:
    """Unmount the topmost mount at `target`, an absolute path without symbolic links. False if there is none."""
    top = sys_mounts.mounted_at(target)
    if top is None:
        return False
    try:
        if device.identity_of(top) is not None:
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
