"""UnionFs: one union as operations on numbers and names. Its calls are in `calls`, and here what is asked of the whole.

Synchronous and thread-safe. Node numbers are inode numbers, the root's is 1; names and paths are bytes; every failure
is an OSError. A number is valid from the reply that gave it until `forget` has taken all its lookups back: each Attr
returned by lookup, mknod, mkdir, symlink, link and create counts one, as FUSE_FORGET does (fuse(4), linux/fuse.h).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence

from unionfs.linux import files
from unionfs.union import form, outlived
from unionfs.union.branch import Branch
from unionfs.union.by_number import ByNumber
from unionfs.union.calls.attributes import Attributes
from unionfs.union.calls.directories import Directories
from unionfs.union.calls.files import OpenFiles
from unionfs.union.calls.names import Names
from unionfs.union.handles import Handles
from unionfs.union.listing import Listings
from unionfs.union.numbers import Xino
from unionfs.union.operation import Operation
from unionfs.union.stack import Stack, tell_nobody
from unionfs.union.waiting import Waiting

# Seconds.
_FOREVER = 1 << 30
# Of operations that wait for somebody to give a lease up, each in a thread.
_MOST_PATIENT = 16


class UnionFs(Names, Attributes, OpenFiles, Directories):
    def __init__(
        self,
        branches: Sequence[Branch],
        *,
        volatile: bool = False,
        xino: Xino = "auto",
        waiting: Waiting | None = None,
    ) -> None:
        """Merge `branches`, top first; the union owns them and closes them. With `volatile` a copy-up does not wait
        for the disk: faster, and for trees that a power cut may take. `waiting` is told of work that takes long; `xino`
        says how inode numbers tell file systems apart (`numbers`).

        Raises OSError: EINVAL (no branch; a writable branch that is not on top), or what cleaning the work area gives.
        """
        self._stack = Stack(branches, volatile=volatile, xino=xino, waiting=waiting or Waiting())
        self._lock = self._stack.lock
        self._operation = Operation(self._stack)
        self._handles = Handles(self._stack)
        self._listings = Listings(self._stack)
        self._by_number = ByNumber(self._stack)
        self._patient = threading.BoundedSemaphore(_MOST_PATIENT)
        self._closed = False

    @property
    def writable(self) -> bool:
        return self._stack.writable

    @property
    def keeps_for(self) -> int:
        """For how many seconds the kernel may keep names, missing ones too, and attributes: for ever, because the mount
        is the only writer of its branches (udba=none)."""
        return _FOREVER

    def tell_changes_to(self, forget_attributes: Callable[[int], None]) -> None:
        """`forget_attributes(number)` is called, with the lock held, when attributes of a node change of which the
        kernel cannot know by what it asked for. It must not wait for an operation of this union."""
        self._stack.tell_changes_to(forget_attributes)

    def counts(self) -> tuple[int, int]:
        """(files that the kernel knows, files that are open). No lock is taken: who asks does not wait for an
        operation."""
        return len(self._stack.nodes), len(self._handles)

    def close(self) -> None:
        """Close every descriptor and leave the writable branch as a plain layer. Closed already is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._handles.close()
            self._listings.close()
            self._stack.tell_changes_to(tell_nobody)  # there is no connection any more
            outlived.drop_all(self._stack)
            self._stack.close()

    def wake(self) -> None:
        """Let operations that wait for another's copy-up look whether their callers gave up (Waiting.check)."""
        with self._lock:
            self._stack.settled.notify_all()

    def give_back_descriptors(self) -> bool:
        """Close those that only save us work, of branch directories, and those to spare. False if there were none."""
        with self._lock:
            return self._stack.directories.clear() | self._stack.spare.give()

    def wait(self, seconds: float) -> bool:
        """Before an operation is tried again (see `again`). InterruptedError if nobody waits for it any more.

        False, at once, if many wait already: who has a lease on a file of his is not to take every thread.
        """
        if not seconds:
            return True
        if not self._patient.acquire(blocking=False):
            return False
        try:
            self._stack.waiting.begins()
            time.sleep(seconds)
        finally:
            self._patient.release()
        self._stack.waiting.check()
        return True

    def check_invariants(self) -> None:
        """AssertionError if the state contradicts itself; for tests."""
        with self._operation:
            for node in self._stack.nodes:
                assert self._stack.nodes.find(node.ino) is self._stack.nodes.find(node.number) is node
                assert node is self._stack.nodes.root or node.lookups > 0 or node.copying, node
                assert not node.layers or node.branch is node.layers[0], node
                assert not node.is_directory or len(node.names) <= 1, node
                assert node.names or node.orphan_fd >= 0 or node is self._stack.nodes.root, node
                for parent, name in node.names:
                    assert self._stack.nodes.find(parent.ino) is parent, parent
                    assert self._stack.resolve(parent, name) is not None, (parent, name)

    def statfs(self) -> os.statvfs_result:
        """Of the writable branch, or of the top one; with the longest name that the union takes."""
        fields = list(os.statvfs((self._stack.upper_branch or self._stack.branches[0]).fd))
        fields[-1] = min(fields[-1], form.NAME_MAX)
        return os.statvfs_result(fields)

    def takes_long(self) -> None:
        """What the caller does next (see Waiting.begins)."""
        self._stack.waiting.begins()

    def syncfs(self) -> None:
        """syncfs(2) of the writable branch; a union without one has nothing to save."""
        branch = self._stack.upper_branch
        if branch is None:
            return
        with self._lock:
            self._stack.waiting.begins()
            fd = os.dup(branch.fd)
        try:
            files.syncfs(fd)
        finally:
            os.close(fd)
