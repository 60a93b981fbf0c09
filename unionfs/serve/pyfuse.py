"""pyfuse3's Operations over one Filesystem: names and numbers are translated here, nothing is decided.

Every request is answered exactly once: OSError by its errno, anything unknown by EIO and a traceback in the log
(pyfuse3 would let it end the session). Quick operations run in place, on trio's one thread; changes of what may
have to be copied up first run in a thread of their own, so that the others go on. Only transport imports this.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from unionfs.linux import consts
from unionfs.serve.filesystem import Filesystem
from unionfs.union.again import Again
from unionfs.union.attributes import Attr
from unionfs.union.privileges import Caller

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Threads that wait for the disk. More would only queue on it.
_SYNCS_AT_ONCE = 16
# Threads that change something. Which of them copies data, or waits for one that does, is known to the union alone, and
# a quick change must not wait for slow ones.
_CHANGES_AT_ONCE = 256

# What fits into a page, the reply's size before Linux 6.16.
_ENTRIES_AT_ONCE = 25
_DOTS = (b".", b"..")

_OPENS_FOR_CHANGE = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_DEFAULT_ACL = b"system.posix_acl_default"


def _fault(operation: str, error: BaseException) -> FUSEError:
    """The answer to a request that failed with `error`."""
    if isinstance(error, FUSEError):
        return error
    if isinstance(error, OSError) and error.errno:
        _log.debug("%s: %s", operation, error)
        return FUSEError(error.errno)
    _log.error("%s failed in an unforeseen way; the caller gets EIO", operation, exc_info=error)
    return FUSEError(errno.EIO)


def _answer(
    operation: Callable[Concatenate[UnionOperations, _P], _T],
) -> Callable[..., Coroutine[Any, Any, _T]]:
    """A request served in place by a plain method."""

    @functools.wraps(operation)
    async def answer(self: UnionOperations, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        again = Again(self._fs.give_back_descriptors)
        while True:
            try:
                return operation(self, *args, **kwargs)
            except Exception as error:
                if not (isinstance(error, OSError) and again.cures(error)):
                    raise _fault(operation.__name__, error) from None
            await self._pause(again.pause)

    return answer


def _answer_in_thread(
    operation: Callable[Concatenate[UnionOperations, _P], Awaitable[_T]],
) -> Callable[..., Coroutine[Any, Any, _T]]:
    """A request that goes to a thread."""

    @functools.wraps(operation)
    async def answer(self: UnionOperations, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        again = Again(self._fs.give_back_descriptors)
        while True:
            try:
                return await operation(self, *args, **kwargs)
            except Exception as error:
                if not (isinstance(error, OSError) and again.cures(error)):
                    raise _fault(operation.__name__, error) from None
            await self._pause(again.pause)

    return answer


class NoThread(OSError):
    """There is no thread to be had."""


async def in_thread(call: Callable[..., _T], *args: Any, limiter: trio.CapacityLimiter | None = None) -> _T:
    """`call(*args)` in a thread. Raises NoThread."""
    begun = False

    def work() -> _T:
        nonlocal begun
        begun = True
        return call(*args)

    try:
        return await trio.to_thread.run_sync(work, limiter=limiter)
    except RuntimeError:
        if begun:
            raise
        raise NoThread(errno.EAGAIN, "no thread can be started: see 'ulimit -u', and pids.max of its cgroup") from None


def _entry(attr: Attr, keeps_for: int) -> EntryAttributes:
    ino, nlink, st, _ = attr
    entry = EntryAttributes()
    entry.st_ino = ino  # the node id and st_ino are one number in pyfuse3
    entry.st_nlink = nlink
    entry.st_mode = st.st_mode
    entry.st_uid = st.st_uid
    entry.st_gid = st.st_gid
    entry.st_rdev = st.st_rdev
    entry.st_size = st.st_size
    entry.st_blksize = st.st_blksize
    entry.st_blocks = st.st_blocks
    entry.st_atime_ns = st.st_atime_ns
    entry.st_mtime_ns = st.st_mtime_ns
    entry.st_ctime_ns = st.st_ctime_ns
    entry.entry_timeout = keeps_for
    entry.attr_timeout = keeps_for
    return entry


def _no_entry(keeps_for: int) -> EntryAttributes:
    """Node id 0 with a timeout makes the kernel remember that there is no such name (fs/fuse/dir.c, fuse_lookup_name).
    """
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = keeps_for
    return entry


def _caller(ctx: RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)


def _forget_attributes(number: int) -> None:
    with contextlib.suppress(OSError):  # ENOENT: the kernel does not know the number any more
        pyfuse3.invalidate_inode(number, attr_only=True)


class UnionOperations(pyfuse3.Operations):
    """All fields are immutable. `waiting` is entered for as long as a request waits for its thread."""

    supports_dot_lookup = True
    enable_acl = True
    # Off: with it the kernel owns size and mtime, and a write(2) succeeds where the branch has no space left.
    enable_writeback_cache = False

    def __init__(self, fs: Filesystem, waiting: AbstractContextManager[None]) -> None:
        super().__init__()
        self._fs = fs
        self._keeps_for = fs.keeps_for
        self._no_entry = _no_entry(self._keeps_for)
        fs.tell_changes_to(_forget_attributes)
        self._waiting = waiting
        self._syncs = trio.CapacityLimiter(_SYNCS_AT_ONCE)
        self._changes = trio.CapacityLimiter(_CHANGES_AT_ONCE)

    async def _call(self, limiter: trio.CapacityLimiter, call: Callable[..., _T], *args: Any) -> _T:
        with self._waiting:
            try:
                return await in_thread(call, *args, limiter=limiter)
            except NoThread:
                _log.warning("no further thread can be started; others wait for the slow work of this one")
        return call(*args)

    def _entry(self, attr: Attr) -> EntryAttributes:
        return _entry(attr, self._keeps_for)

    async def _pause(self, seconds: float) -> None:
        with self._waiting:
            await trio.sleep(seconds)

    # Names

    @_answer
    def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        attr = self._fs.lookup(parent, name)
        return self._no_entry if attr is None else self._entry(attr)

    @_answer
    def forget(self, counts: Sequence[tuple[int, int]]) -> None:
        self._fs.forget(counts)

    def _mode(self, parent: int, mode: int, ctx: RequestContext) -> int:
        """The mode of a new entry. A default ACL of the directory takes the place of the umask (acl(5)); the kernel
        leaves that to us on mounts with MS_POSIXACL, and elsewhere has applied the umask already."""
        if not mode & ctx.umask:
            return mode
        try:
            self._fs.getxattr(parent, _DEFAULT_ACL)
        except OSError:
            return mode & ~ctx.umask
        return mode

    @_answer
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._fs.mknod(parent, name, self._mode(parent, mode, ctx), rdev, ctx.uid, ctx.gid))

    @_answer
    def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._fs.mkdir(parent, name, self._mode(parent, mode, ctx), ctx.uid, ctx.gid))

    @_answer
    def symlink(self, parent: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._fs.symlink(parent, name, target, ctx.uid, ctx.gid))

    @_answer_in_thread
    async def link(self, ino: int, new_parent: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._call(self._changes, self._fs.link, ino, new_parent, new_name))

    @_answer_in_thread
    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        await self._call(self._changes, self._fs.unlink, parent, name)

    @_answer_in_thread
    async def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        await self._call(self._changes, self._fs.rmdir, parent, name)

    @_answer_in_thread
    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: RequestContext
    ) -> None:
        await self._call(self._changes, self._fs.rename, parent, name, new_parent, new_name, flags)

    @_answer
    def readlink(self, ino: int, ctx: RequestContext) -> bytes:
        return self._fs.readlink(ino)

    # Attributes

    @_answer
    def getattr(self, ino: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._fs.getattr(ino))

    @_answer_in_thread
    async def setattr(
        self, ino: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        change = functools.partial(
            self._fs.setattr,
            ino,
            mode=attr.st_mode & 0o7777 if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            caller=(caller := _caller(ctx)),
            kill_privileges=bool(fields.update_size) and not caller.has(consts.CAP_FSETID),
            kernel_takes=True,
        )
        return self._entry(await self._call(self._changes, change))

    @_answer
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        st = self._fs.statfs()
        data = StatvfsData()
        data.f_bsize = st.f_bsize
        data.f_frsize = st.f_frsize
        data.f_blocks = st.f_blocks
        data.f_bfree = st.f_bfree
        data.f_bavail = st.f_bavail
        data.f_files = st.f_files
        data.f_ffree = st.f_ffree
        data.f_favail = st.f_favail
        data.f_namemax = st.f_namemax
        return data

    @_answer
    def access(self, ino: int, mask: int, ctx: RequestContext) -> bool:
        return self._fs.access(ino, mask, ctx.uid, ctx.gid)

    # pyfuse3 itself answers XATTR_CREATE and XATTR_REPLACE, by asking getxattr first.

    @_answer_in_thread
    async def setxattr(self, ino: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._call(self._changes, self._fs.setxattr, ino, name, value)

    @_answer
    def getxattr(self, ino: int, name: bytes, ctx: RequestContext) -> bytes:
        return self._fs.getxattr(ino, name)

    @_answer
    def listxattr(self, ino: int, ctx: RequestContext) -> Sequence[bytes]:
        names = self._fs.listxattr(ino)
        # As listxattr(2) of other file systems: trusted.* is shown to those who could read it.
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    @_answer_in_thread
    async def removexattr(self, ino: int, name: bytes, ctx: RequestContext) -> None:
        await self._call(self._changes, self._fs.removexattr, ino, name)

    # Open files. Their data survives a copy-up unchanged, so the page cache is kept across opens (FileInfo's default).

    @_answer_in_thread
    async def open(self, ino: int, flags: int, ctx: RequestContext) -> FileInfo:
        fs = self._fs
        fh = await self._call(self._changes, fs.open, ino, flags) if flags & _OPENS_FOR_CHANGE else fs.open(ino, flags)
        if flags & os.O_TRUNC and fs.kill_privileges(ino, _caller(ctx), unless_capable=True):
            _forget_attributes(ino)
        return FileInfo(fh=fh)

    @_answer
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        fh, attr = self._fs.create(parent, name, self._mode(parent, mode, ctx), ctx.uid, ctx.gid)
        return FileInfo(fh=fh), self._entry(attr)

    @_answer
    def read(self, fh: int, offset: int, size: int) -> bytes:
        return self._fs.read(fh, offset, size)

    @_answer
    def write(self, fh: int, offset: int, data: bytes) -> int:
        return self._fs.write(fh, offset, data)

    @_answer
    def flush(self, fh: int) -> None:
        # A write is in the branch's file before it is answered: close(2) has nothing to wait for. After one ENOSYS the
        # kernel no longer asks (fs/fuse/file.c, no_flush); it still writes dirty mapped pages out first.
        raise FUSEError(errno.ENOSYS)

    @_answer
    def release(self, fh: int) -> None:
        self._fs.release(fh)

    @_answer_in_thread
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._call(self._syncs, self._fs.fsync, fh, datasync)

    # Directories

    # Listings need no handle, so the directory's own number serves as one.

    @_answer
    def opendir(self, ino: int, ctx: RequestContext) -> int:
        return ino

    @_answer
    def readdir(self, fh: int, offset: int, token: ReaddirToken) -> None:
        sent = False
        while True:
            try:
                entries = self._fs.list_plus(fh, offset, _ENTRIES_AT_ONCE)
            except OSError:
                # What was sent is counted and must arrive; the next request starts behind it and meets the error again.
                if sent:
                    return
                raise
            if not entries:
                return
            for number, (name, attr, following) in enumerate(entries):
                if not pyfuse3.readdir_reply(token, name, self._entry(attr), following):
                    # The kernel counts a lookup for each entry of READDIRPLUS but these two (fs/fuse/readdir.c).
                    self._fs.forget((attr.number, 1) for name, attr, _ in entries[number:] if name not in _DOTS)
                    return
            sent = True
            offset = following

    @_answer
    def releasedir(self, fh: int) -> None:
        pass

    @_answer_in_thread
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._call(self._syncs, self._fs.fsyncdir, fh, datasync)
