"""Open files: the numbers the kernel holds, and the descriptors behind them.

The table is guarded by Stack.lock. Reads and writes look a handle up without it: a dict look-up is atomic, and the
kernel sends no request on a handle after its release.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs.union import copyup, place, protection
from unionfs.union.errors import fail
from unionfs.union.nodes import Node
from unionfs.union.stack import Stack

# Flags that mean something for the branch's file. O_APPEND is the kernel's business: it sends offsets, and pwrite(2)
# on an O_APPEND descriptor would ignore them; but see `_opened`. For O_SYNC and O_DSYNC it sends FSYNC after each
# write. O_DIRECT asks for buffers aligned as Python's are not.
_KEPT = os.O_ACCMODE | os.O_NOATIME


class OpenFile:
    """`fd`, `source` and `outdated` are guarded by Stack.lock for writing; readers may see the old or the new fd,
    both open until release. `fd` is -1 until somebody needs it, and `source` is where it was opened."""

    __slots__ = ("fd", "flags", "node", "outdated", "source")

    def __init__(self, node: Node, fd: int, flags: int) -> None:
        self.node = node
        self.fd = fd
        self.flags = flags
        self.source = node.source
        self.outdated: list[int] = []


class Handles:
    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._files: dict[int, OpenFile] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._files)

    def open(self, node: Node, flags: int, *, lazily: bool = False) -> int:
        """Open a regular file. For writing, a lower file is copied up first; with O_TRUNC none of its data.

        `lazily`: without a descriptor as long as nobody needs one.
        """
        if node.kind != stat.S_IFREG:
            fail(errno.EISDIR if node.is_directory else errno.ENXIO)
        if not lazily:
            self._stack.spare.take()
        truncate = flags & os.O_TRUNC
        if truncate or flags & os.O_ACCMODE != os.O_RDONLY:
            protection.refuse_open(self._stack, node, flags)
            copyup.copy_up(self._stack, node, size=0 if truncate else None)
        fd = -1
        if truncate or not lazily:
            fd = self._opened(node, flags & (_KEPT | os.O_TRUNC | os.O_APPEND))
        return self.add(node, fd, flags & (_KEPT | os.O_APPEND))

    def _opened(self, node: Node, flags: int) -> int:
        """A descriptor on the file where it is now. One that only grows (chattr +a) can be opened to append alone, and
        then its end is where everything goes."""
        here = place.of(self._stack, node)
        try:
            return here.open(flags & ~os.O_APPEND)
        except PermissionError:
            if not flags & os.O_APPEND:
                raise
        return here.open(flags)

    def add(self, node: Node, fd: int, flags: int) -> int:
        self._last = number = self._last + 1
        self._files[number] = OpenFile(node, fd, flags)
        return number

    def file(self, number: int) -> OpenFile:
        try:
            return self._files[number]
        except KeyError:
            fail(errno.EBADF)

    def refresh(self, handle: OpenFile) -> None:
        """Give a handle a descriptor on the file where it is now: it has none, or the file was copied up since, and the
        copy is to be seen, as on one file system."""
        if handle.fd < 0 or handle.source is not handle.node.source:
            self._stack.spare.take()
            fd = self._opened(handle.node, handle.flags)
            if handle.fd >= 0:
                handle.outdated.append(handle.fd)
            handle.fd, handle.source = fd, handle.node.source

    def close_descriptor(self, handle: OpenFile) -> None:
        if handle.fd >= 0:
            os.close(handle.fd)
            handle.fd = -1

    def release(self, number: int) -> None:
        handle = self._files.pop(number, None)
        if handle is None:
            fail(errno.EBADF)
        if handle.fd >= 0:
            os.close(handle.fd)
        for fd in handle.outdated:
            os.close(fd)

    def close(self) -> None:
        for number in list(self._files):
            self.release(number)
