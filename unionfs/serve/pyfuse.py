"""pyfuse3's Operations over one Filesystem: names and numbers are translated here, nothing is decided.

In which thread they run, and what becomes of errors, is told in `inplace`. Only transport imports this.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from unionfs.linux import consts
from unionfs.serve.filesystem import Filesystem
from unionfs.serve.inplace import InPlace, InPlaceOperations, answered
from unionfs.union.attributes import Attr
from unionfs.union.privileges import Caller

# What fits into a page, the reply's size before Linux 6.16.
_ENTRIES_AT_ONCE = 25
_DOTS = (b".", b"..")

_DEFAULT_ACL = b"system.posix_acl_default"


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


class UnionOperations(InPlaceOperations):
    """All fields are immutable."""

    supports_dot_lookup = True
    enable_acl = True
    # Off: with it the kernel owns size and mtime, and a write(2) succeeds where the branch has no space left.
    enable_writeback_cache = False

    def __init__(self, fs: Filesystem, waiting: AbstractContextManager[None], in_place: InPlace) -> None:
        """`waiting` is entered for as long as a request waits; `in_place` is what `fs` tells of slow work."""
        super().__init__(in_place, waiting, fs.give_back_descriptors)
        self._fs = fs
        self._keeps_for = fs.keeps_for
        self._no_entry = _no_entry(self._keeps_for)
        fs.tell_changes_to(_forget_attributes)

    def _entry(self, attr: Attr) -> EntryAttributes:
        return _entry(attr, self._keeps_for)

    # Names

    @answered
    def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        attr = self._fs.lookup(parent, name)
        return self._no_entry if attr is None else self._entry(attr)

    @answered
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

    @answered
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._fs.mknod(parent, name, self._mode(parent, mode, ctx), rdev, ctx.uid, ctx.gid))

    @answered
    def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._fs.mkdir(parent, name, self._mode(parent, mode, ctx), ctx.uid, ctx.gid))

    @answered
    def symlink(self, parent: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._fs.symlink(parent, name, target, ctx.uid, ctx.gid))

    @answered
    def link(self, ino: int, new_parent: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._fs.link(ino, new_parent, new_name))

    @answered
    def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self._fs.unlink(parent, name)

    @answered
    def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        self._fs.rmdir(parent, name)

    @answered
    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: RequestContext
    ) -> None:
        self._fs.rename(parent, name, new_parent, new_name, flags)

    @answered
    def readlink(self, ino: int, ctx: RequestContext) -> bytes:
        return self._fs.readlink(ino)

    # Attributes

    @answered
    def getattr(self, ino: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._fs.getattr(ino))

    @answered
    def setattr(
        self, ino: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        caller = _caller(ctx)
        changed = self._fs.setattr(
            ino,
            mode=attr.st_mode & 0o7777 if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            caller=caller,
            kill_privileges=bool(fields.update_size) and not caller.has(consts.CAP_FSETID),
            kernel_takes=True,
        )
        return self._entry(changed)

    @answered
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

    @answered
    def access(self, ino: int, mask: int, ctx: RequestContext) -> bool:
        return self._fs.access(ino, mask, ctx.uid, ctx.gid)

    # pyfuse3 itself answers XATTR_CREATE and XATTR_REPLACE, by asking getxattr first.

    @answered
    def setxattr(self, ino: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._fs.setxattr(ino, name, value)

    @answered
    def getxattr(self, ino: int, name: bytes, ctx: RequestContext) -> bytes:
        return self._fs.getxattr(ino, name)

    @answered
    def listxattr(self, ino: int, ctx: RequestContext) -> Sequence[bytes]:
        names = self._fs.listxattr(ino)
        # As listxattr(2) of other file systems: trusted.* is shown to those who could read it.
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    @answered
    def removexattr(self, ino: int, name: bytes, ctx: RequestContext) -> None:
        self._fs.removexattr(ino, name)

    # Open files. Their data survives a copy-up unchanged, so the page cache is kept across opens (FileInfo's default).

    @answered
    def open(self, ino: int, flags: int, ctx: RequestContext) -> FileInfo:
        fh = self._fs.open(ino, flags)
        if flags & os.O_TRUNC and self._fs.kill_privileges(ino, _caller(ctx), unless_capable=True):
            _forget_attributes(ino)
        return FileInfo(fh=fh)

    @answered
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        fh, attr = self._fs.create(parent, name, self._mode(parent, mode, ctx), ctx.uid, ctx.gid)
        return FileInfo(fh=fh), self._entry(attr)

    @answered
    def read(self, fh: int, offset: int, size: int) -> bytes:
        return self._fs.read(fh, offset, size)

    @answered
    def write(self, fh: int, offset: int, data: bytes) -> int:
        return self._fs.write(fh, offset, data)

    @answered
    def flush(self, fh: int) -> None:
        # A write is in the branch's file before it is answered: close(2) has nothing to wait for. After one ENOSYS the
        # kernel no longer asks (fs/fuse/file.c, no_flush); it still writes dirty mapped pages out first.
        raise FUSEError(errno.ENOSYS)

    @answered
    def release(self, fh: int) -> None:
        self._fs.release(fh)

    @answered
    def fsync(self, fh: int, datasync: bool) -> None:
        self._fs.fsync(fh, datasync)

    # Directories

    # Listings need no handle, so the directory's own number serves as one.

    @answered
    def opendir(self, ino: int, ctx: RequestContext) -> int:
        return ino

    @answered
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

    @answered
    def releasedir(self, fh: int) -> None:
        pass

    @answered
    def fsyncdir(self, fh: int, datasync: bool) -> None:
        self._fs.fsyncdir(fh, datasync)
