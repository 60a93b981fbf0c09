"""Files by their numbers, of which the table may know nothing: a file handle (name_to_handle_at(2), NFS) is a number,
and good for as long as the file is there, whatever the kernel has forgotten and however often the union was mounted.

The branches are surveyed when a number is asked for that the table does not know, those that are not written to once,
and the writable one again when more has changed in it than is remembered (`forgotten`): so handles of what is gone make
nobody walk. What a survey says is where to look: the file is looked up there as everybody does it, and has to have
the number then.

Not found again (ESTALE): files with a spare number, which is good for one mount; those whose number another file has
too, as in layers made by `cp -al`; those on file systems which number them anew; and by a number that the branch's file
system has meanwhile given to another file, that one is found: ext4 and XFS do give numbers again, tmpfs and btrfs not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from itertools import islice

from unionfs.union import identity, survey
from unionfs.union.branch import Branch
from unionfs.union.errors import fail
from unionfs.union.forgotten import Forgotten
from unionfs.union.identity import Source
from unionfs.union.nodes import Node
from unionfs.union.stack import Stack
from unionfs.union.survey import Survey

# Names looked up for one number: a file may have thousands, and all be whited out.
_MOST_NAMES = 256


class ByNumber:
    """Guarded by Stack.lock."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._lower: Survey | None = None
        self._upper: Survey | None = None
        self._walking = False

    def node(self, number: int) -> Node:
        """The node that has, or had, this number, held by the operation. ESTALE if there is none any more. Lets go of
        the lock while it walks."""
        nodes = self._stack.nodes
        node = nodes.find(number)
        if node is None:
            if not self._stack.identity.lasts(number):
                fail(errno.ESTALE, b"%d" % number)
            self._survey()
            node = nodes.find(number) or self._found(number)
            if node is None:
                fail(errno.ESTALE, b"%d" % number)
        return node

    # Where to look.

    def _found(self, number: int) -> Node | None:
        found: Node | None = None
        for parent, name in islice(self._places(number), _MOST_NAMES):
            node = self._at(parent, name)
            if node is None:
                continue
            if node.ino == number:
                found = node
            elif self._stack.identity.is_spare(node.ino):
                return None  # which of the two it was cannot be told
        return found

    def _places(self, number: int) -> Iterator[tuple[Node, bytes]]:
        """Where the file may be: in the writable branch below the directory that has a number, wherever that is now,
        elsewhere by its path, which no rename changes."""
        for directory, name in self._names_in_upper(number):
            parent = self._directory(directory)
            if parent is not None:
                yield parent, name
        if self._lower is not None:
            for directory, name in self._lower.names(number):
                parent = self._descend(self._lower.path(directory))
                if parent is not None:
                    yield parent, name

    def _names_in_upper(self, number: int) -> list[tuple[int, bytes]]:
        """The last known first."""
        forgotten, upper = self._stack.forgotten, self._upper
        names = forgotten.names(number)[::-1] if forgotten is not None else []
        if upper is not None:
            names += [(upper.numbers[directory], name) for directory, name in upper.names(number)]
        return names

    def _directory(self, number: int) -> Node | None:
        """The directory in the writable branch that has this number."""
        steps: dict[int, bytes] = {}
        while (node := self._stack.nodes.find(number)) is None:
            names = self._names_in_upper(number)
            if not names or number in steps:
                return None
            parent, steps[number] = names[0]
            number = parent
        for expected, name in reversed(steps.items()):
            node = self._at(node, name)
            if node is None or node.ino != expected:
                return None
        return node

    def _descend(self, path: list[bytes]) -> Node | None:
        node: Node | None = self._stack.nodes.root
        for name in path:
            node = node and self._at(node, name)
        return node

    def _at(self, parent: Node, name: bytes) -> Node | None:
        stack = self._stack
        found = stack.resolve(parent, name)
        node = None if found is None else stack.adopt(parent, name, found)
        stack.directories.trim()
        return node

    # Surveys.

    def _survey(self) -> None:
        """Look through the branches that have not been, or not for long. If as much changes meanwhile as is remembered,
        the next one who asks does it again."""
        stack = self._stack
        while self._walking:
            stack.waiting.begins()
            stack.settled.wait(stack.waiting.patience())
            stack.waiting.check()
        lower = [branch for branch in stack.branches if not branch.writable] if self._lower is None else []
        upper = stack.upper_branch if stack.forgotten is None else None
        if not lower and upper is None:
            return
        stack.waiting.begins()
        self._walking = True
        try:
            if lower:
                self._lower = self._walk(lower)
            if upper is not None:
                stack.forgotten = Forgotten()
                self._upper = None
                self._upper = self._walk([upper])
        finally:
            if self._upper is None:
                stack.forgotten = None
            self._walking = False
            stack.settled.notify_all()

    def _walk(self, branches: Sequence[Branch]) -> Survey:
        roots = [(branch, os.dup(branch.fd)) for branch in branches]
        try:
            with self._stack.unlocked():
                return survey.walk(roots, self._source, self._numbers)
        finally:
            for _, fd in roots:
                os.close(fd)

    def _source(self, branch: Branch, fd: int, entry: os.stat_result) -> Source | None:
        with self._stack.lock:
            source = self._stack.identity.source(branch, fd, b".", entry)
        return source if source.lasting else None

    def _numbers(self, branch: Branch, path: bytes, source: Source, inode: int) -> Sequence[int]:
        """As `Adoption.node_at` has them: of what may be a copy, and of what is a copy only if it is hard-linked."""
        ids = self._stack.identity
        own = source.number(inode)
        copy = source.copies is None or inode in source.copies
        if not copy and not self._stack.pseudo_links.any_in(branch):
            return (own,)
        value = branch.read_attribute(path, "origin")
        origin = ids.remembered(branch, inode) if value is None else identity.read_record(value)[0]
        if origin is None:
            return (own,)
        number = ids.number(origin)
        return (number,) if copy else (own, number)
