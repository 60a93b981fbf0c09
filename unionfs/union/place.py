"""Where a node's bytes are now: a name in a branch directory, or the descriptor of an unnamed file.

A Place is used at once and not kept: the next change of the node, or the next eviction of a directory, outdates it.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from unionfs.linux import files
from unionfs.union import opening
from unionfs.union.errors import fail
from unionfs.union.nodes import Node
from unionfs.union.stack import Stack


class Place(NamedTuple):
    """`fd` is the directory that holds `name`; with an empty name, `fd` is the file itself. With `node`, who changes
    the branch behind our back may have put another file there, and what must not meet that asks for the place `held`.
    Entries of the work area have none: nobody else gets there."""

    fd: int
    name: bytes
    node: Node | None = None

    @property
    def path(self) -> bytes:
        return files.fd_path(self.fd, self.name)

    @property
    def follow(self) -> bool:
        """Names are never followed; the magic link of a descriptor has to be."""
        return not self.name

    def stat(self) -> os.stat_result:
        fd, name, node = self
        if not name:
            return os.fstat(fd)
        if node is not None:
            return opening.status(fd, name, node)
        return os.stat(name, dir_fd=fd, follow_symlinks=False)

    def open(self, flags: int) -> int:
        """A descriptor on the file; see `opening` for what that is safe from."""
        fd, name, node = self
        if not name:
            return opening.by(fd, flags)
        if node is not None:
            return opening.look_at(fd, name, node) if flags & os.O_PATH else opening.at(fd, name, flags, node)
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)

    def readlink(self) -> bytes:
        """Of a place by descriptor."""
        return os.readlink(b"", dir_fd=self.fd)  # readlinkat(2) with an empty path: the O_PATH descriptor's link

    def chown(self, uid: int, gid: int) -> None:
        if self.name:
            os.chown(self.name, uid, gid, dir_fd=self.fd, follow_symlinks=False)
        else:
            os.chown(self.path, uid, gid)

    def chmod(self, mode: int) -> None:
        """fchmodat(2) follows links, so it is done by descriptor; a symbolic link gives EOPNOTSUPP."""
        if not self.name:
            os.chmod(self.path, mode)
            return
        fd = self.open(os.O_PATH)
        try:
            os.chmod(files.fd_path(fd), mode)
        finally:
            os.close(fd)

    def utime(self, atime_ns: int, mtime_ns: int) -> None:
        if self.name:
            os.utime(self.name, ns=(atime_ns, mtime_ns), dir_fd=self.fd, follow_symlinks=False)
        else:
            os.utime(self.path, ns=(atime_ns, mtime_ns))

    def getxattr(self, name: bytes | str) -> bytes:
        return os.getxattr(self.path, name, follow_symlinks=self.follow)

    def setxattr(self, name: bytes | str, value: bytes, flags: int = 0) -> None:
        os.setxattr(self.path, name, value, flags, follow_symlinks=self.follow)

    def removexattr(self, name: bytes | str) -> None:
        os.removexattr(self.path, name, follow_symlinks=self.follow)

    def listxattr(self) -> list[str]:
        """None where the file system has none at all (vfat, iso9660, some squashfs): the union has."""
        try:
            return os.listxattr(self.path, follow_symlinks=self.follow)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return []
            raise


# As Place(*fields), without a call of Python.
_place: Callable[[tuple[int, bytes, Node | None]], Place] = functools.partial(tuple.__new__, Place)


class held:
    """A place by a descriptor that leads to the node's file and to no other, for as long as this is entered."""

    __slots__ = ("_fd", "_place")

    def __init__(self, place: Place) -> None:
        self._place = place
        self._fd = -1

    def __enter__(self) -> Place:
        _, name, node = self._place
        if not name:
            return self._place
        self._fd = self._place.open(os.O_PATH)
        return _place((self._fd, b"", node))

    def __exit__(self, *error: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def of(stack: Stack, node: Node) -> Place:
    """Where `node` is. ENOENT if it was removed under us."""
    parent = node.parent
    if node.seldom is None and node.kind != stat.S_IFDIR and parent is not None:
        branch = node.source.branch
        if branch in parent.layers:
            return _place((stack.directories.get(parent, branch).fd, node.name, node))  # as below, for one name
    if node.orphan_fd >= 0:
        return Place(node.orphan_fd, b"", node)
    if node.is_directory:
        if not node.layers:
            fail(errno.ENOENT)
        if parent is None:
            return Place(node.layers[0].fd, b".", node)
        return Place(stack.directories.get(parent, node.layers[0]).fd, node.name, node)
    for parent, name in reversed(node.names):
        if node.branch in parent.layers:
            directory = stack.directories.get(parent, node.branch)
            if node.pseudo_link is None or name in directory:
                return Place(directory.fd, name, node)
    if node.pseudo_link is None:
        fail(errno.ENOENT)
    return Place(stack.pseudo_links.fd(node.branch), node.pseudo_link, node)


def links(stack: Stack, node: Node, entry: os.stat_result) -> int:
    """How many names the union shows for a file whose status in its branch is `entry`."""
    if node.orphan_fd >= 0 and not node.branch.writable:
        return 0  # whited out; the lower file still has its name
    if node.pseudo_link is None:
        return entry.st_nlink
    return stack.pseudo_links.count(node.branch, node.pseudo_link, entry.st_nlink)


def has_several_names(node: Node, entry: os.stat_result) -> bool:
    """Whether the file with the status `entry` has several, or had: of a copy in a lower branch the key may be the one
    link, while names further down lead to it."""
    return entry.st_nlink > 1 or node.pseudo_link is not None


class outliving:
    """Hold on to a file by descriptor while its last known name goes; where the removal fails nothing has changed.

    The kernel may still use the file, and its inode number must not go to another file while it is in the table.
    """

    __slots__ = ("_fd", "_node", "_stack")

    def __init__(self, stack: Stack, node: Node) -> None:
        self._stack = stack
        self._node = node
        self._fd = -1

    def __enter__(self) -> None:
        node = self._node
        if node.seldom is None or not (node.several_names or node.orphan_fd >= 0):
            self._fd = of(self._stack, node).open(os.O_PATH)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._fd < 0:
            return
        if kind is None:
            self._node.orphan_fd = self._fd
            if self._node.branch.confined and not os.fstat(self._fd).st_nlink:
                self._stack.identity.forget(self._node.branch, self._node.inode)
        else:
            os.close(self._fd)
