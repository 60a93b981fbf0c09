"""UnionFs: one union as operations on numbers and names. It takes the lock and delegates; nothing is decided here.

Synchronous and thread-safe. Node numbers are inode numbers, the root's is 1; names and paths are bytes; every failure
is an OSError. A number is valid from the reply that gave it until `forget` has taken all its lookups back: each Attr
returned by lookup, mknod, mkdir, symlink, link and create counts one, as FUSE_FORGET does (fuse(4), linux/fuse.h).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from unionfs.linux import consts, files
from unionfs.union import (
    attributes,
    copyup,
    create,
    extents,
    form,
    inode_flags,
    outlived,
    place,
    protection,
    remove,
    rename,
)
from unionfs.union.attributes import Attr
from unionfs.union.branch import Branch
from unionfs.union.errors import fail
from unionfs.union.handles import Handles
from unionfs.union.listing import Entry, EntryPlus, Listings
from unionfs.union.nodes import Node
from unionfs.union.operation import Operation
from unionfs.union.privileges import ROOT, Caller
from unionfs.union.stack import Stack, tell_nobody
from unionfs.union.waiting import Waiting

_DOTS = (b".", b"..")
# Seconds.
_FOREVER = 1 << 30
# Of operations that wait for somebody to give a lease up, each in a thread.
_MOST_PATIENT = 16


class UnionFs:
    def __init__(
        self, branches: Sequence[Branch], *, volatile: bool = False, waiting: Waiting | None = None
    ) -> None:
        """Merge `branches`, top first; the union owns them and closes them. With `volatile` a copy-up does not wait
        for the disk: faster, and for trees that a power cut may take. `waiting` is told of work that takes long.

        Raises OSError: EINVAL (no branch; a writable branch that is not on top), or what cleaning the work area gives.
        """
        self._stack = Stack(branches, volatile=volatile, waiting=waiting or Waiting())
        self._lock = self._stack.lock
        self._operation = Operation(self._stack)
        self._handles = Handles(self._stack)
        self._listings = Listings(self._stack)
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

    # Names.

    def lookup(self, parent: int, name: bytes) -> Attr | None:
        """The entry `name`, or None. `.` and `..` work on any directory that the table knows."""
        stack = self._stack
        with self._lock:
            directory = stack.nodes.get(parent)
            if name in _DOTS:
                return self._counted(directory if name == b"." else directory.parent or directory)
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

    def _counted(self, node: Node) -> Attr:
        attr = attributes.getattr_(self._stack, node)
        node.lookups += 1
        return attr

    def _new(self, new: create.New) -> Attr:
        new.node.lookups += 1
        return attributes.of_entry(self._stack, new.node, new.entry)

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

    # Attributes.

    def getattr(self, ino: int) -> Attr:
        with self._operation:
            return attributes.getattr_(self._stack, self._stack.nodes.get(ino))

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        caller: Caller = ROOT,
        kill_privileges: bool = False,
        kernel_takes: bool = False,
    ) -> Attr:
        """Change what is not None; with nothing it is chown(2) of neither owner nor group. `mode` is at most 07777.
        `kill_privileges`: `caller` sets the size, and lacks CAP_FSETID. `kernel_takes`: there is no
        FUSE_HANDLE_KILLPRIV_V2, and for a write the kernel takes set-user-ID by a `mode`."""
        with self._operation:
            return attributes.setattr_(
                self._stack, self._stack.nodes.get(ino), mode=mode, uid=uid, gid=gid, size=size,
                atime_ns=atime_ns, mtime_ns=mtime_ns, caller=caller, kill=kill_privileges,
                kernel_takes=kernel_takes,
            )  # fmt: skip

    def readlink(self, ino: int) -> bytes:
        with self._operation:
            with place.held(place.of(self._stack, self._stack.nodes.get(ino))) as here:
                return here.readlink()

    def getxattr(self, ino: int, name: bytes) -> bytes:
        with self._operation:
            return attributes.getxattr(self._stack, self._stack.nodes.get(ino), name)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        with self._operation:
            attributes.setxattr(self._stack, self._stack.nodes.get(ino), name, value, flags)

    def listxattr(self, ino: int) -> list[bytes]:
        with self._operation:
            return attributes.listxattr(self._stack, self._stack.nodes.get(ino))

    def removexattr(self, ino: int, name: bytes) -> None:
        with self._operation:
            attributes.removexattr(self._stack, self._stack.nodes.get(ino), name)

    def access(self, ino: int, mask: int, uid: int, gid: int) -> bool:
        with self._operation:
            return attributes.access(self._stack, self._stack.nodes.get(ino), mask, uid, gid)

    def statfs(self) -> os.statvfs_result:
        """Of the writable branch, or of the top one; with the longest name that the union takes."""
        fields = list(os.statvfs((self._stack.upper_branch or self._stack.branches[0]).fd))
        fields[-1] = min(fields[-1], form.NAME_MAX)
        return os.statvfs_result(fields)

    # Open files.

    def open(self, ino: int, flags: int, *, lazily: bool = False) -> int:
        """A handle. `lazily`: for a kernel that will do the I/O itself, no descriptor is opened before it is needed."""
        with self._operation:
            return self._handles.open(self._stack.nodes.get(ino), flags, lazily=lazily)

    def branch_of(self, fh: int) -> Branch:
        """The branch that holds the file's bytes now."""
        return self._handles.file(fh).node.branch

    def descriptor(self, fh: int) -> tuple[int, Branch]:
        """A descriptor on the file where it is now, good until `release`, and that branch."""
        handle = self._handles.file(fh)
        with self._operation:
            self._handles.refresh(handle)
            return handle.fd, handle.source.branch

    def open_again(self, fh: int, flags: int) -> tuple[int, Branch]:
        """A new descriptor on the handle's file where it is now, and that branch. The branch's file system
        may refuse."""
        node = self._handles.file(fh).node
        with self._operation:
            return place.of(self._stack, node).open(flags), node.branch

    def close_descriptor(self, fh: int) -> None:
        """Give up the handle's descriptor until it is needed again: somebody else does the I/O."""
        with self._lock:
            self._handles.close_descriptor(self._handles.file(fh))

    @contextlib.contextmanager
    def staying(self, fh: int) -> Iterator[bool]:
        """Around what no copy-up of the handle's file may come between: others wait with one. False if it lives in the
        writable branch, or soon will."""
        node = self._handles.file(fh).node
        with self._lock:
            stays = not node.is_upper and not node.copying
            if stays:
                node.copying = True
        try:
            yield stays
        finally:
            if stays:
                with self._lock:
                    node.copying = False
                    self._stack.settled.notify_all()

    def create(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> tuple[int, Attr]:
        """A new file, open for reading and writing: (handle, attributes)."""
        with self._operation:
            self._stack.spare.take()
            new, fd = create.create(self._stack, self._stack.nodes.get(parent), name, mode, uid, gid)
            return self._handles.add(new.node, fd, os.O_RDWR), self._new(new)

    def read(self, fh: int, offset: int, size: int) -> bytes:
        """At most `size` bytes, fewer at the end of the file only."""
        fd = self._current_fd(fh)
        if files.waits_for_disk(fd, offset):
            self._stack.waiting.begins()
        return os.pread(fd, size, offset)

    def _current_fd(self, fh: int) -> int:
        handle = self._handles.file(fh)
        if handle.fd < 0 or handle.source is not handle.node.source:
            with self._operation:
                self._handles.refresh(handle)
        return handle.fd

    def write(self, fh: int, offset: int, data: bytes | memoryview) -> int:
        return os.pwrite(self._current_fd(fh), data, offset)

    def kill_privileges(self, ino: int, caller: Caller = ROOT, *, unless_capable: bool = False) -> bool:
        """Take the set-ID bits off a regular file that `caller` changes, who has no CAP_FSETID, or with
        `unless_capable` if he has none; False if that changed nothing."""
        with self._operation:
            node = self._stack.nodes.get(ino)
            return attributes.kill_privileges(self._stack, node, caller, unless_capable=unless_capable)

    def fsync(self, fh: int, datasync: bool) -> None:
        fd = self._current_fd(fh)
        self._stack.waiting.begins()
        if datasync:
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def release(self, fh: int) -> None:
        with self._lock:
            self._handles.release(fh)

    # Directories. There is nothing to open: see `listing`.

    def list(self, ino: int, cookie: int, most: int) -> Sequence[Entry]:
        """At most `most` entries behind `cookie` as (name, inode number, file type, next cookie), `.` and `..` first of
        all; none at the end. No lookups are counted."""
        with self._lock:
            entries = self._listings.entries(self._stack.nodes.get(ino), cookie, most)
            self._stack.directories.trim()
            return entries

    def list_plus(self, ino: int, cookie: int, most: int) -> Sequence[EntryPlus]:
        """The same as (name, attributes, next cookie). Each entry but `.` and `..` counts one lookup: `forget` those
        that are not sent."""
        with self._lock:
            entries = self._listings.entries_plus(self._stack.nodes.get(ino), cookie, most)
            self._stack.directories.trim()
            return entries

    def fsyncdir(self, ino: int, datasync: bool) -> None:
        """fsync(2) of the directory's part in the writable branch; a directory without one has nothing to save."""
        with self._operation:
            node = self._stack.nodes.get(ino)
            if not self._stack.writable or not node.layers or not node.is_upper:
                return
            fd = os.dup(self._stack.upper(node).fd)
        try:
            copyup.flush_directory(fd)
        finally:
            os.close(fd)

    # Extents and flags. What pyfuse3 has no requests for.

    def tmpfile(self, parent: int, mode: int, uid: int, gid: int) -> tuple[int, Attr]:
        """A new file without a name, open for reading and writing: (handle, attributes). `link` gives it one."""
        with self._operation:
            self._stack.spare.take()
            node, fd = create.tmpfile(self._stack, self._stack.nodes.get(parent), mode, uid, gid)
            try:
                attr = self._counted(node)
            except BaseException:
                os.close(fd)
                raise
            return self._handles.add(node, fd, os.O_RDWR), attr

    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2), all modes; see `extents.allocate`."""
        self._begins(length)
        if mode & ~consts.FALLOC_FL_KEEP_SIZE and self._handles.file(fh).node.protection:
            fail(errno.EPERM)  # what only grows (vfs_fallocate(), fs/open.c)
        extents.allocate(self._current_fd(fh), mode, offset, length)

    def lseek(self, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE; see `extents.seek`."""
        return extents.seek(self._current_fd(fh), offset, whence)

    def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int, flags: int = 0
    ) -> int:
        """copy_file_range(2): bytes copied; see `extents.copy`."""
        fd_in, fd_out = self._current_fd(fh_in), self._current_fd(fh_out)
        self._begins(min(length, os.fstat(fd_in).st_size - offset_in))  # cp(1) asks for all that there may be
        return extents.copy(fd_in, offset_in, fd_out, offset_out, length, flags)

    def _begins(self, length: int) -> None:
        if length > extents.QUICK:
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

    def statx(self, ino: int) -> tuple[Attr, files.Statx]:
        """The attributes, and what statx(2) adds to them: time of birth (a copy's is that of the copy) and flags."""
        with self._operation:
            node = self._stack.nodes.get(ino)
            here = place.of(self._stack, node)
            attr = attributes.of_entry(self._stack, node, here.stat())
            return attr, protection.shown(files.statx(here.fd, here.name), node)

    def get_flags(self, ino: int) -> int:
        """FS_IOC_GETFLAGS: FS_*_FL; see `inode_flags`."""
        with self._operation:
            return inode_flags.get(self._stack, self._stack.nodes.get(ino))

    def set_flags(self, ino: int, flags: int) -> None:
        with self._operation:
            inode_flags.set_(self._stack, self._stack.nodes.get(ino), flags)

    def get_fsxattr(self, ino: int) -> bytes:
        """FS_IOC_FSGETXATTR: struct fsxattr, 28 bytes; see `inode_flags`."""
        with self._operation:
            return inode_flags.get_extended(self._stack, self._stack.nodes.get(ino))

    def set_fsxattr(self, ino: int, attributes: bytes) -> None:
        with self._operation:
            inode_flags.set_extended(self._stack, self._stack.nodes.get(ino), attributes)
