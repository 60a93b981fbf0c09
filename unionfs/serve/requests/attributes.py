"""Attributes of files, whatever their kind."""

from __future__ import annotations

import errno
import stat
import time

from unionfs.fuse import abi, reply
from unionfs.fuse.request import Request
from unionfs.linux import consts
from unionfs.serve.requests.base import Reply, Requests, caller_of
from unionfs.union.attributes import Attr

_SET_ID = stat.S_ISUID | stat.S_ISGID
_ACCESS_ACL = b"system.posix_acl_access"


class AttributeRequests(Requests):
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
            caller=caller_of(r),
            kill_privileges=bool(valid & abi.FATTR_KILL_SUIDGID),
        )
        if valid & abi.FATTR_MODE and mode & _SET_ID and self.passthrough is not None:
            for number in {attr.ino, attr.number}:
                self.passthrough.got_set_id(number)
        return self._attr(r, attr)

    def statx(self, r: Request) -> Reply:
        number = r.nodeid
        attr, (btime, attributes, mask) = self._fs.statx(number)
        ino, nlink, st, _ = attr
        valid = self._attr_valid(number, attr)
        return reply.statx(r.unique, ino, nlink, st, btime, valid, attributes, mask)

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
        if entry.st_mode & stat.S_ISGID and not caller_of(r).keeps_set_group_id(entry):
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
