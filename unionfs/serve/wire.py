"""Wire requests over one Filesystem: bytes in, bytes out. Names and numbers are translated here, nothing is decided.

`answer` gives each request exactly one reply, or none where the protocol has none: OSError becomes its errno, anything
unknown EIO and a traceback in the log. It is called by many threads at once. What it does not implement is ENOSYS, and
the kernel does not ask again: OPENDIR (then every directory is cached until it changes), FLUSH (a write is in the
branch's file before it is answered), locks (the kernel's own are right for one machine), POLL, BMAP.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import Any

from unionfs.fuse import abi, reply, table
from unionfs.fuse.dirents import DirectoryReply
from unionfs.fuse.init import Agreement
from unionfs.fuse.request import Malformed, Request, parse
from unionfs.fuse.table import ROWS
from unionfs.linux import consts
from unionfs.serve.filesystem import Filesystem
from unionfs.serve.passthrough import Opened, Outdated, Passthrough
from unionfs.union.again import CURABLE, Again
from unionfs.union.attributes import Attr
from unionfs.union.errors import fail
from unionfs.union.privileges import Caller

_log = logging.getLogger(__name__)

Reply = bytes | Sequence[bytes]

_SET_ID = stat.S_ISUID | stat.S_ISGID
_DEFAULT_ACL = b"system.posix_acl_default"
_ACCESS_ACL = b"system.posix_acl_access"
_THROUGH_US = Opened(abi.FOPEN_KEEP_CACHE, 0)

# How many of a request's names are entries of a directory. TMPFILE's is "/" (fs/dcache.c, d_alloc_anon).
_ENTRY_NAMES = {
    abi.FUSE_LOOKUP: 1, abi.FUSE_SYMLINK: 1, abi.FUSE_MKNOD: 1, abi.FUSE_MKDIR: 1, abi.FUSE_UNLINK: 1,
    abi.FUSE_RMDIR: 1, abi.FUSE_RENAME: 2, abi.FUSE_RENAME2: 2, abi.FUSE_LINK: 1, abi.FUSE_CREATE: 1,
}  # fmt: skip
_NO_NAMES = frozenset({b"", b".", b".."})

# What an entry takes in a listing, with a name of usual length: a batch of so many bytes fills the buffer, or nearly.
_ENTRY_BYTES = 40
_ENTRY_PLUS_BYTES = 176


class WireOperations:
    """`agreed` is set by INIT; `counts`, requests by opcode, is only roughly right where threads race. The others are
    immutable."""

    def __init__(
        self,
        fs: Filesystem,
        *,
        init: Callable[[tuple[Any, ...]], Agreement],
        passthrough: Callable[[Agreement], Passthrough | None] = lambda agreement: None,
        interrupt: Callable[[int], bool] = lambda unique: True,
        forget_attributes: Callable[[int], None] = lambda number: None,
    ) -> None:
        """`init` negotiates, from the fields of INIT. `passthrough` makes the keeper of backing files once it is known
        whether the kernel can. `interrupt` wakes the request with a number; False if there is none yet.
        `forget_attributes` makes the kernel ask for a node's attributes again."""
        self._fs = fs
        self._keeps_for = fs.keeps_for
        self._init = init
        self._make_passthrough = passthrough
        self._interrupt = interrupt
        self._forget_attributes = forget_attributes
        fs.tell_changes_to(forget_attributes)
        self.passthrough: Passthrough | None = None
        self.agreed: Agreement | None = None
        self.counts = [0] * len(ROWS)
        self._longest = 0
        self._operations: list[Callable[[Request], Reply | None] | None] = [
            None if row is None else getattr(self, row.name.lower(), None) for row in ROWS
        ]

    def answer(self, message: memoryview) -> Reply | None:
        """The reply to one message of the kernel. Raises fuse.request.Unintelligible: the session must end."""
        try:
            request = parse(message)
        except Malformed as error:
            _log.warning("%s", error)
            return reply.error(error.unique, error.code) if error.answers else None
        opcode = request.opcode
        self.counts[opcode] += 1
        operation = self._operations[opcode]
        again: Again | None = None
        while True:
            try:
                if again is not None and not self._fs.wait(again.pause):
                    return self._failed(request, errno.EWOULDBLOCK, "many wait for leases already")
                if opcode in _ENTRY_NAMES:
                    _check_names(request)
                if operation is None:
                    return self._failed(request, errno.ENOSYS, "not implemented")
                return operation(request)
            except OSError as error:
                if error.errno in CURABLE:
                    again = again or Again(self._fs.give_back_descriptors)
                    if again.cures(error):
                        continue
                return self._failed(request, error.errno or errno.EIO, error)
            except Outdated:
                return reply.error(request.unique, errno.ESTALE)
            except OverflowError as error:  # an offset or a time that no system call takes
                return self._failed(request, errno.EINVAL, error)
            except Exception as error:
                _log.exception("%s failed in an unforeseen way; the caller gets EIO", table.name(opcode))
                return self._failed(request, errno.EIO, error)

    def _failed(self, request: Request, code: int, why: object) -> Reply | None:
        row = ROWS[request.opcode]
        assert row is not None
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s: %s", row.name, why)
        return reply.error(request.unique, code) if row.answers else None

    # The session.

    def init(self, r: Request) -> Reply:
        if self.agreed is not None and not self.agreed.again:
            fail(errno.EPROTO, why="INIT, a second time")
        self.agreed = self._init(r.fields)
        self._longest = self.agreed.max_write
        self.passthrough = self._make_passthrough(self.agreed)
        return reply.init(r.unique, self.agreed.reply)

    def destroy(self, r: Request) -> Reply:
        return reply.ok(r.unique)

    def interrupt(self, r: Request) -> Reply | None:
        """EAGAIN when the request is not there yet, or not any more: the kernel sends this again, or drops it
        (Documentation/filesystems/fuse.rst, "Interrupting filesystem operations")."""
        if self._interrupt(r.fields[0]):
            return None
        return reply.error(r.unique, errno.EAGAIN)

    # Names.

    def _entry(self, r: Request, attr: Attr) -> bytes:
        ino, nlink, st, number = attr
        return reply.entry(r.unique, number, ino, nlink, st, self._keeps_for, self._attr_valid(number, attr))

    def _attr_valid(self, number: int, attr: Attr) -> int:
        """For how many seconds the kernel may keep the attributes. Not at all of a node with two numbers: they change
        under the other."""
        if attr.number != attr.ino:
            return 0
        if self.passthrough is None:
            return self._keeps_for
        return self.passthrough.attributes_valid(number, attr.st.st_mode)

    def lookup(self, r: Request) -> Reply:
        attr = self._fs.lookup(r.nodeid, r.names[0])
        if attr is None:
            return reply.no_entry(r.unique, self._keeps_for)
        return self._entry(r, attr)

    def forget(self, r: Request) -> None:
        self._forget([(r.nodeid, r.fields[0])])

    def batch_forget(self, r: Request) -> None:
        self._forget(abi.FORGET_ONE.iter_unpack(r.data))

    def _forget(self, counts: Any) -> None:
        counts = list(counts)
        if self.passthrough is not None:
            for number, _ in counts:
                self.passthrough.forget(number)
        self._fs.forget(counts)

    def _mode(self, parent: int, mode: int, umask: int) -> int:
        """The mode of a new entry. A default ACL of the directory takes the place of the umask (acl(5))."""
        if not mode & umask:
            return mode
        try:
            self._fs.getxattr(parent, _DEFAULT_ACL)
        except OSError:
            return mode & ~umask
        return mode

    def mknod(self, r: Request) -> Reply:
        mode, rdev, umask = r.fields
        device = os.makedev(rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00)  # new_decode_dev(), linux/kdev_t.h
        mode = self._mode(r.nodeid, mode, umask)
        return self._entry(r, self._fs.mknod(r.nodeid, r.names[0], mode, device, r.uid, r.gid))

    def mkdir(self, r: Request) -> Reply:
        mode, umask = r.fields
        return self._entry(r, self._fs.mkdir(r.nodeid, r.names[0], self._mode(r.nodeid, mode, umask), r.uid, r.gid))

    def symlink(self, r: Request) -> Reply:
        return self._entry(r, self._fs.symlink(r.nodeid, r.names[0], r.names[1], r.uid, r.gid))

    def link(self, r: Request) -> Reply:
        return self._entry(r, self._fs.link(r.fields[0], r.nodeid, r.names[0]))

    def unlink(self, r: Request) -> Reply:
        self._fs.unlink(r.nodeid, r.names[0])
        return reply.ok(r.unique)

    def rmdir(self, r: Request) -> Reply:
        self._fs.rmdir(r.nodeid, r.names[0])
        return reply.ok(r.unique)

    def rename(self, r: Request) -> Reply:
        self._fs.rename(r.nodeid, r.names[0], r.fields[0], r.names[1])
        return reply.ok(r.unique)

    def rename2(self, r: Request) -> Reply:
        self._fs.rename(r.nodeid, r.names[0], r.fields[0], r.names[1], r.fields[1])
        return reply.ok(r.unique)

    def readlink(self, r: Request) -> Reply:
        return reply.data(r.unique, self._fs.readlink(r.nodeid))

    # Attributes.

    def getattr(self, r: Request) -> Reply:
        return self._attr(r, self._fs.getattr(r.nodeid))

    def _attr(self, r: Request, attr: Attr) -> bytes:
        ino, nlink, st, _ = attr
        return reply.attr(r.unique, ino, nlink, st, self._attr_valid(r.nodeid, attr))

    def setattr(self, r: Request) -> Reply:
        valid, _, size, _, atime, mtime, _, atimensec, mtimensec, _, mode, uid, gid = r.fields
        now = time.time_ns() if valid & (abi.FATTR_ATIME_NOW | abi.FATTR_MTIME_NOW) else 0
        attr = self._fs.setattr(
            r.nodeid,
            mode=mode & 0o7777 if valid & abi.FATTR_MODE else None,
            uid=uid if valid & abi.FATTR_UID else None,
            gid=gid if valid & abi.FATTR_GID else None,
            size=size if valid & abi.FATTR_SIZE else None,
            atime_ns=_time(valid, abi.FATTR_ATIME, abi.FATTR_ATIME_NOW, now, atime, atimensec),
            mtime_ns=_time(valid, abi.FATTR_MTIME, abi.FATTR_MTIME_NOW, now, mtime, mtimensec),
            caller=_caller(r),
            kill_privileges=bool(valid & abi.FATTR_KILL_SUIDGID),
        )
        if valid & abi.FATTR_MODE and mode & _SET_ID and self.passthrough is not None:
            for number in {attr.ino, attr.number}:
                self.passthrough.got_set_id(number)
        return self._attr(r, attr)

    def _kill_privileges(self, number: int, caller: Caller, *, unless_capable: bool = False) -> None:
        """Take set-ID bits away because the file is changed by somebody who may not keep them. The kernel takes what it
        knows of the mode for good (execve(2) goes by it) until it is told."""
        if self._fs.kill_privileges(number, caller, unless_capable=unless_capable):
            for known in {number, self._fs.current(number)}:
                self._forget_attributes(known)

    def statx(self, r: Request) -> Reply:
        number = r.nodeid
        attr, (btime, attributes, mask) = self._fs.statx(number)
        ino, nlink, st, _ = attr
        valid = self._attr_valid(number, attr)
        return reply.statx(r.unique, ino, nlink, st, btime, valid, attributes, mask)

    def statfs(self, r: Request) -> Reply:
        return reply.statfs(r.unique, self._fs.statfs())

    def access(self, r: Request) -> Reply:
        if not self._fs.access(r.nodeid, r.fields[0], r.uid, r.gid):
            return reply.error(r.unique, errno.EACCES)
        return reply.ok(r.unique)

    def setxattr(self, r: Request) -> Reply:
        self._fs.setxattr(r.nodeid, r.names[0], bytes(r.data), r.fields[1])
        if r.names[0] == _ACCESS_ACL:
            self._check_set_group_id(r)
        return reply.ok(r.unique)

    def _check_set_group_id(self, r: Request) -> None:
        """An ACL set by somebody outside the file's group takes set-group-ID (posix_acl_update_mode(), fs/posix_acl.c).
        """
        entry = self._fs.getattr(r.nodeid).st
        if entry.st_mode & stat.S_ISGID and not _caller(r).keeps_set_group_id(entry):
            self._fs.setattr(r.nodeid, mode=stat.S_IMODE(entry.st_mode) & ~stat.S_ISGID)

    def getxattr(self, r: Request) -> Reply:
        return _sized(r, self._fs.getxattr(r.nodeid, r.names[0]))

    def listxattr(self, r: Request) -> Reply:
        """As listxattr(2) of other file systems: trusted.* is shown to those who could read it."""
        names = self._fs.listxattr(r.nodeid)
        shown = names if r.uid == 0 else [name for name in names if not name.startswith(b"trusted.")]
        return _sized(r, b"".join(name + b"\0" for name in shown))

    def removexattr(self, r: Request) -> Reply:
        self._fs.removexattr(r.nodeid, r.names[0])
        return reply.ok(r.unique)

    def ioctl(self, r: Request) -> Reply:
        """The flags of chattr(1) and xfs_io(8). The VFS itself answers FICLONE and never asks (fs/ioctl.c)."""
        fs, command, data, room = self._fs, r.fields[2], bytes(r.data), r.fields[5]
        if command == consts.FS_IOC_GETFLAGS and room >= 4:
            return reply.ioctl(r.unique, 0, fs.get_flags(r.nodeid).to_bytes(4, "little"))
        if command == consts.FS_IOC_SETFLAGS and len(data) >= 4:
            fs.set_flags(r.nodeid, int.from_bytes(data[:4], "little"))
            return reply.ioctl(r.unique, 0, b"")
        if command == consts.FS_IOC_FSGETXATTR and room >= 28:  # sizeof(struct fsxattr)
            return reply.ioctl(r.unique, 0, fs.get_fsxattr(r.nodeid))
        if command == consts.FS_IOC_FSSETXATTR:
            fs.set_fsxattr(r.nodeid, data)
            return reply.ioctl(r.unique, 0, b"")
        return reply.error(r.unique, errno.ENOTTY)

    # Open files.

    def open(self, r: Request) -> Reply:
        flags, open_flags = r.fields
        fh = self._fs.open(r.nodeid, flags, lazily=self.passthrough is not None)
        try:
            if open_flags & abi.FUSE_OPEN_KILL_SUIDGID:
                self._kill_privileges(r.nodeid, _caller(r))
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
            self._kill_privileges(r.nodeid, _caller(r))
        return reply.written(r.unique, self._fs.write(fh, offset, r.data))

    def fsync(self, r: Request) -> Reply:
        self._fs.fsync(r.fields[0], bool(r.fields[1] & abi.FUSE_FSYNC_FDATASYNC))
        return reply.ok(r.unique)

    def fallocate(self, r: Request) -> Reply:
        fh, offset, length, mode = r.fields
        # Unlike WRITE it does not say who may keep them.
        self._kill_privileges(r.nodeid, _caller(r), unless_capable=True)
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
        self._kill_privileges(node_out, _caller(r), unless_capable=True)
        if self._is_outdated(fh_in):
            fail(errno.EXDEV)  # then the kernel copies what the file has
        return self._fs.copy_file_range(fh_in, offset_in, fh_out, offset_out, length, flags)

    def _is_outdated(self, fh: int) -> bool:
        return self.passthrough is not None and self.passthrough.is_outdated(fh)

    def syncfs(self, r: Request) -> Reply:
        self._fs.syncfs()
        return reply.ok(r.unique)

    # Directories. There are no open ones: a listing goes on from any cookie.

    def readdir(self, r: Request) -> Reply:
        _, offset, size = r.fields[:3]
        size = min(size, self._longest)
        listing = DirectoryReply(r.unique, size)
        for name, ino, mode, following in self._fs.list(r.nodeid, offset, size // _ENTRY_BYTES):
            if not listing.add(name, ino, mode, following):
                break
        return listing.message()

    def readdirplus(self, r: Request) -> Reply:
        _, offset, size = r.fields[:3]
        size = min(size, self._longest)
        listing = DirectoryReply(r.unique, size)
        add_plus = listing.add_plus
        unsent: list[tuple[bytes, int]] = []
        for name, attr, following in self._fs.list_plus(r.nodeid, offset, max(1, size // _ENTRY_PLUS_BYTES)):
            ino, nlink, st, number = attr
            if unsent or not add_plus(
                name, number, ino, nlink, st, following, self._keeps_for, self._attr_valid(number, attr)
            ):
                unsent.append((name, number))
        # The kernel counts a lookup for each entry that it gets but these two (fs/fuse/readdir.c).
        self._fs.forget((number, 1) for name, number in unsent if name not in (b".", b".."))
        return listing.message()

    def fsyncdir(self, r: Request) -> Reply:
        self._fs.fsyncdir(r.nodeid, bool(r.fields[1] & abi.FUSE_FSYNC_FDATASYNC))
        return reply.ok(r.unique)


def _caller(r: Request) -> Caller:
    return Caller(r.uid, r.gid, r.pid)


def _check_names(r: Request) -> None:
    """EINVAL for what would lead elsewhere. The kernel sends no such name; `.` and `..` it looks up for an export."""
    for name in r.names[: _ENTRY_NAMES[r.opcode]]:
        if b"/" in name or (name in _NO_NAMES and (r.opcode != abi.FUSE_LOOKUP or not name)):
            fail(errno.EINVAL, name)


def _time(valid: int, given: int, given_now: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if not valid & given:
        return None
    return now if valid & given_now else seconds * 1_000_000_000 + nanoseconds


def _sized(r: Request, value: bytes) -> bytes:
    """GETXATTR and LISTXATTR ask for the size first, by a size of 0."""
    size = r.fields[0]
    if size == 0:
        return reply.xattr_size(r.unique, len(value))
    if len(value) > size:
        return reply.error(r.unique, errno.ERANGE)
    return reply.data(r.unique, value)
