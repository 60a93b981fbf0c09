"""The tree of a list of mounts, attached nowhere.

A driver returns Mount values (drivers.api) and never mounts. A list of them is mounted in order on one target, each
over the one before; usually it has one element.

A tree is first a *detached* mount: it is attached nowhere and in no mount namespace that anybody could enter, so it has
no name, no copy of it gets into a namespace that is made meanwhile, and it ends with the last descriptor of it, however
the process that has it ends. There are two uses of that, and no third:

    private     what we look into or write to ourselves: nosuid, nodev and noexec
    open_tree   what becomes a container's root: without these, attached in the container's mount namespace

drivers.mounts.attached is for whoever wants a tree at a place of the file system: it attaches what open_tree() gives.

Needs CAP_SYS_ADMIN. Failures are OSError, which say what the kernel said, or `drivers.errors.Unavailable` with the
sentence of `unionfs mount`, or of a volatile overlay that a crash may have torn; InUse for a tree that is busy.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from drivers.api import Mount
from drivers.errors import InUse, Unavailable
from drivers.mounts import overlayfs, union
from unionfs.linux import consts
from unionfs.linux import mounts as sys_mounts
from unionfs.transport.unmount import DEADLINE_SECONDS

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


class Tree:
    """A detached mount, and the process that serves it if there is one. `fd` is a descriptor of its root (O_PATH).

    Once attached (attach(), or move_mount(2) of `fd`) it goes on after release() and leave(); attached nowhere, it ends
    then. A child of this process that has not called execve(2) yet holds it too. Not for use by several threads.
    """

    def __init__(self, fd: int, server: int = -1) -> None:
        """`fd` and `server`, a pidfd, are the tree's from now on."""
        self.fd = fd
        self._server = server

    def attach(self, target: str) -> None:
        """Attach it at the directory `target`, over what is there. Raises OSError, which names the target."""
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
        """If an error is under way, the caller is to hear of that one, and not of ours. It may be a signal's, which
        came when a descriptor had been opened and not yet assigned: so nothing of ours waits long for the end."""
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
    Tree.close(), unless something in it is still open: for a union that raises InUse.
    """
    with open_tree(mounts) as tree:
        attributes = _HARMLESS | (consts.MOUNT_ATTR_RDONLY if read_only else 0)
        sys_mounts.mount_setattr(tree.fd, "", consts.AT_EMPTY_PATH | consts.AT_RECURSIVE, attr_set=attributes)
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree.fd)
        try:
            yield root
        finally:
            os.close(root)


def _bind(mount: Mount) -> Tree:
    """A read-only one can never be seen while it could still be written through; nor do mounts made elsewhere propagate
    into it or out of it: a copy of a shared mount is one of its peers until it is made private."""
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
    return Tree(*union.union_tree(mount.options))


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
