"""From the host's mounts to a mount namespace that has the container's root and nothing else.

A new mount namespace is a copy of the host's mounts, and what is copied stays in use: an unmounted disk could not be
detached for as long as a container runs. So what is needed of the host is opened before, as mounts that are in no
namespace, and the copy is given up at once: between the two are a handful of system calls.
"""

from __future__ import annotations

import os
from collections import deque
from typing import NamedTuple, Protocol

from runtime.oci import options
from runtime.oci.inroot import Root
from unionfs.linux import consts, mounts, processes


class Work:
    """What the steps hand on: the opened sources of the binds, in their order; the given files by name; the root; the
    verified null device.

    `tree` is the root file system, and `file_tree` the one with the files, each as a descriptor of a mount that is in
    no namespace, where it is given as one.
    """

    def __init__(self, tree: int = -1, file_tree: int = -1) -> None:
        self.tree = tree
        self.file_tree = file_tree
        self.sources: deque[int] = deque()
        self.files: dict[str, int] = {}
        self.root = Root(-1)
        self.null_fd = -1


class RootfsStep(Protocol):
    def describe(self) -> str: ...
    def apply(self, work: Work) -> None: ...


class OpenSource(NamedTuple):
    """What a bind brings from the host. Its attributes hold for every mount below it too: read-only is read-only."""

    source: str
    destination: str
    options: options.MountOptions

    def describe(self) -> str:
        return f"bind {self.source} on {self.destination}"

    def apply(self, work: Work) -> None:
        recursive = consts.AT_RECURSIVE if self.options.recursive else 0
        mount_fd = mounts.open_tree(consts.AT_FDCWD, self.source, consts.OPEN_TREE_CLONE | recursive)
        work.sources.append(mount_fd)
        mounts.mount_setattr(
            mount_fd,
            b"",
            consts.AT_EMPTY_PATH | recursive,
            attr_set=self.options.attr_set,
            attr_clr=self.options.attr_clr,
            propagation=self.options.propagation or consts.MS_PRIVATE,
        )


class NewNamespace(NamedTuple):
    """A copy of the host's mounts, cut off from them: what is mounted from here on must not appear there."""

    propagation: str

    def describe(self) -> str:
        return f"make the mounts {self.propagation}"

    def apply(self, work: Work) -> None:
        processes.unshare(consts.CLONE_NEWNS)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _enter_namespace()  # the caller's root may be a directory of a mount, which has no propagation
            mounts.mount_setattr(consts.AT_FDCWD, "/", consts.AT_RECURSIVE, propagation=_propagation(self.propagation))
            os.fchdir(root)
            os.chroot(".")
        finally:
            os.close(root)


class BindRoot(NamedTuple):
    """The root must be a mount point for pivot_root(2), and the descriptor of the copy is the root from here on."""

    path: str

    def describe(self) -> str:
        return f"bind the root {self.path} on itself"

    def apply(self, work: Work) -> None:
        flags = consts.OPEN_TREE_CLONE | consts.AT_RECURSIVE
        work.root = Root(mounts.open_tree(consts.AT_FDCWD, self.path, flags))
        _attach_root(work.root, self.path)


class AttachRoot(NamedTuple):
    """The given root file system, at `path` for the moment until it is pivoted into."""

    path: str
    propagation: str

    def describe(self) -> str:
        return f"attach the root at {self.path}"

    def apply(self, work: Work) -> None:
        work.root = Root(work.tree)
        # A copy of one of the host's mounts is a peer of it: what is mounted in the one would appear in the other.
        flags = consts.AT_EMPTY_PATH | consts.AT_RECURSIVE
        mounts.mount_setattr(work.tree, b"", flags, propagation=_propagation(self.propagation))
        _attach_root(work.root, self.path)


class OpenFiles(NamedTuple):
    """Each of these files as a mount of its own. A part can be had only of a mount that is in a namespace
    (open_tree(2), before Linux 6.15); so theirs is in this one for a moment, at a place that every namespace has."""

    names: tuple[str, ...]

    def describe(self) -> str:
        return f"open the files {', '.join(self.names)}"

    def apply(self, work: Work) -> None:
        mounts.move_mount(work.file_tree, b"", consts.AT_FDCWD, "/proc", consts.MOVE_MOUNT_F_EMPTY_PATH)
        flags = consts.OPEN_TREE_CLONE | consts.AT_SYMLINK_NOFOLLOW
        for name in self.names:
            work.files[name] = mounts.open_tree(work.file_tree, name, flags)
        os.fchdir(work.file_tree)
        mounts.umount2(".", consts.MNT_DETACH)
        os.chdir("/")
        os.close(work.file_tree)


class Pivot(NamedTuple):
    """Make the root the namespace's, and let go of the old one. See pivot_root(2), "pivot_root(".", ".")"."""

    def describe(self) -> str:
        return "pivot into the root"

    def apply(self, work: Work) -> None:
        # pivot_root(2) swaps the caller's root. If the caller is in a chroot that is not the namespace's, which would
        # stay above the container's: whoever joins the namespace starts there, and CAP_SYS_CHROOT reaches it.
        _enter_namespace()
        os.fchdir(work.root.fd)
        mounts.pivot_root(".", ".")
        # The old root is now stacked on the new one at "."; what is under it is private, so the host keeps its mounts.
        mounts.umount2(".", consts.MNT_DETACH)
        os.chdir("/")


def look(root: Root) -> int:
    """A descriptor to look into the root with, from outside and as long as it is open: a mount of its own, in no
    namespace, read-only, without programs and devices, and without what is mounted in the container."""
    fd = mounts.open_tree(root.fd, b"", consts.OPEN_TREE_CLONE | consts.AT_EMPTY_PATH)
    attributes = consts.MOUNT_ATTR_RDONLY | consts.MOUNT_ATTR_NOSUID | consts.MOUNT_ATTR_NODEV
    attributes |= consts.MOUNT_ATTR_NOEXEC
    mounts.mount_setattr(fd, b"", consts.AT_EMPTY_PATH, attr_set=attributes, propagation=consts.MS_PRIVATE)
    return fd


def _enter_namespace() -> None:
    """Out of whatever chroot the caller is in: entering a mount namespace, even one's own, leads to its root
    (fs/namespace.c, mntns_install)."""
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        processes.setns(namespace, consts.CLONE_NEWNS)
    finally:
        os.close(namespace)


def _attach_root(root: Root, path: str) -> None:
    mounts.move_mount(root.fd, b"", consts.AT_FDCWD, path, consts.MOVE_MOUNT_F_EMPTY_PATH)


def _propagation(kind: str) -> int:
    return consts.MS_SLAVE if kind == "slave" else consts.MS_PRIVATE
