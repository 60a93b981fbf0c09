"""Names, and the numbers that the kernel has for what they lead to."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from unionfs.union import attributes, create, form, remove, rename
from unionfs.union.attributes import Attr
from unionfs.union.calls.base import Calls
from unionfs.union.errors import fail

_DOTS = (b".", b"..")


class Names(Calls):
    def lookup(self, parent: int, name: bytes) -> Attr | None:
        """The entry `name`, or None. `.` is the file with the number `parent` itself and `..` the directory that it is
        in, also for a file that the table does not know (`by_number`)."""
        if name in _DOTS:
            return self._by_number_alone(parent, up=name == b"..")
        stack = self._stack
        with self._lock:
            directory = stack.nodes.get(parent)
            if len(name) > form.NAME_MAX:
                fail(errno.ENAMETOOLONG)
            found = stack.resolve(directory, name)
            if found is None:
                stack.missing(directory, name)
                attr = None
            else:
                attr = attributes.counted(stack, directory, name, found)
            stack.directories.trim()
            return attr

    def _by_number_alone(self, number: int, *, up: bool) -> Attr:
        with self._operation:
            node = self._by_number.node(number)
            if up and node is not self._stack.nodes.root:
                if node.parent is None:
                    fail(errno.ENOENT)
                node = node.parent
            return self._counted(node)

    def renumber(self, number: int) -> int:
        """Give a node a fresh number, if it has none yet, and return it. The old one stays good until the node leaves
        the table: the kernel takes what it is told about the fresh one for another file, with the same st_ino."""
        with self._lock:
            return self._stack.nodes.renumber(self._stack.nodes.get(number))

    def has_two_numbers(self, number: int) -> bool:
        """Whether the node was renumbered."""
        with self._lock:
            node = self._stack.nodes.get(number)
            return node.number != node.ino

    def current(self, number: int) -> int:
        """What the kernel is to call the node."""
        with self._lock:
            return self._stack.nodes.get(number).number

    def forget(self, counts: Iterable[tuple[int, int]]) -> None:
        """Take (number, lookups) back."""
        with self._lock:
            for number, count in counts:
                node = self._stack.nodes.find(number)
                if node is not None:
                    self._stack.unreference(node, node.forgettable(count))

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Attr:
        with self._operation:
            return self._new(create.mknod(self._stack, self._stack.nodes.get(parent), name, mode, rdev, uid, gid))

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attr:
        with self._operation:
            return self._new(create.mkdir(self._stack, self._stack.nodes.get(parent), name, mode, uid, gid))

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attr:
        with self._operation:
            return self._new(create.symlink(self._stack, self._stack.nodes.get(parent), name, target, uid, gid))

    def link(self, ino: int, new_parent: int, new_name: bytes) -> Attr:
        with self._operation:
            node = self._stack.nodes.get(ino)
            create.link(self._stack, node, self._stack.nodes.get(new_parent), new_name)
            return self._counted(node)

    def unlink(self, parent: int, name: bytes) -> None:
        with self._operation:
            remove.unlink(self._stack, self._stack.nodes.get(parent), name)

    def rmdir(self, parent: int, name: bytes) -> None:
        with self._operation:
            remove.rmdir(self._stack, self._stack.nodes.get(parent), name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        nodes = self._stack.nodes
        with self._operation:
            rename.rename(self._stack, nodes.get(parent), name, nodes.get(new_parent), new_name, flags)
