"""Open files."""

from __future__ import annotations

import errno

from unionfs.fuse import abi, reply
from unionfs.fuse.request import Request
from unionfs.serve.passthrough import Opened
from unionfs.serve.requests.base import Reply, Requests, caller_of
from unionfs.union.attributes import Attr
from unionfs.union.errors import fail

_THROUGH_US = Opened(abi.FOPEN_KEEP_CACHE, 0)


class FileRequests(Requests):
    def open(self, r: Request) -> Reply:
        flags, open_flags = r.fields
        fh = self._fs.open(r.nodeid, flags, lazily=self.passthrough is not None)
        try:
            if open_flags & abi.FUSE_OPEN_KILL_SUIDGID:
                self._kill_privileges(r.nodeid, caller_of(r))
            opened = self._opened(r, r.nodeid, fh, flags, None)
        except BaseException:
            self._fs.release(fh)
            raise
        return reply.opened(r.unique, fh, *opened)

    def _opened(self, r: Request, number: int, fh: int, flags: int, mode: int | None) -> Opened:
        if self.passthrough is None:
            return _THROUGH_US
        return self.passthrough.open(number, fh, flags, r.pid, mode=mode)

    def create(self, r: Request) -> Reply:
        flags, mode, umask, _ = r.fields
        mode = self._mode(r.nodeid, mode, umask)
        return self._created(r, flags, *self._fs.create(r.nodeid, r.names[0], mode, r.uid, r.gid))

    def tmpfile(self, r: Request) -> Reply:
        flags, mode, umask, _ = r.fields
        mode = self._mode(r.nodeid, mode, umask)
        return self._created(r, flags, *self._fs.tmpfile(r.nodeid, mode, r.uid, r.gid))

    def _created(self, r: Request, flags: int, fh: int, attr: Attr) -> Reply:
        ino, nlink, st, number = attr
        try:
            opened = self._opened(r, number, fh, flags, st.st_mode)
        except BaseException:
            self._fs.release(fh)
            self._fs.forget([(number, 1)])
            raise
        valid = self._attr_valid(number, attr)
        return reply.created(r.unique, number, ino, nlink, st, self._keeps_for, valid, fh, *opened)

    def release(self, r: Request) -> Reply:
        fh = r.fields[0]
        self._fs.release(fh)
        if self.passthrough is not None:
            self.passthrough.close(fh)
        return reply.ok(r.unique)

    def read(self, r: Request) -> Reply:
        fh, offset, size = r.fields[:3]
        data = self._fs.read(fh, offset, min(size, self._longest))
        return reply.data_header(r.unique, len(data)), data

    def write(self, r: Request) -> Reply:
        fh, offset, _, write_flags, *_ = r.fields
        if write_flags & abi.FUSE_WRITE_KILL_SUIDGID:
            self._kill_privileges(r.nodeid, caller_of(r))
        return reply.written(r.unique, self._fs.write(fh, offset, r.data))

    def fsync(self, r: Request) -> Reply:
        self._fs.fsync(r.fields[0], bool(r.fields[1] & abi.FUSE_FSYNC_FDATASYNC))
        return reply.ok(r.unique)

    def fallocate(self, r: Request) -> Reply:
        fh, offset, length, mode = r.fields
        # Unlike WRITE it does not say who may keep them.
        self._kill_privileges(r.nodeid, caller_of(r), unless_capable=True)
        self._fs.fallocate(fh, mode, offset, length)
        return reply.ok(r.unique)

    def lseek(self, r: Request) -> Reply:
        fh, offset, whence = r.fields
        if self._is_outdated(fh):
            fail(errno.EINVAL)  # as where there is no SEEK_DATA
        return reply.offset(r.unique, self._fs.lseek(fh, offset, whence))

    def copy_file_range(self, r: Request) -> Reply:
        return reply.written(r.unique, self._copy(r))

    def copy_file_range_64(self, r: Request) -> Reply:
        return reply.copied(r.unique, self._copy(r))

    def _copy(self, r: Request) -> int:
        fh_in, offset_in, node_out, fh_out, offset_out, length, flags = r.fields
        self._kill_privileges(node_out, caller_of(r), unless_capable=True)
        if self._is_outdated(fh_in):
            fail(errno.EXDEV)  # then the kernel copies what the file has
        return self._fs.copy_file_range(fh_in, offset_in, fh_out, offset_out, length, flags)

    def _is_outdated(self, fh: int) -> bool:
        return self.passthrough is not None and self.passthrough.is_outdated(fh)
