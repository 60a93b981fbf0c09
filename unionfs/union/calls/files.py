"""Open files. Their bytes take no lock."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from unionfs.linux import consts, files
from unionfs.union import create, extents, place
from unionfs.union.attributes import Attr
from unionfs.union.branch import Branch
from unionfs.union.calls.base import Calls
from unionfs.union.errors import fail


class OpenFiles(Calls):
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
