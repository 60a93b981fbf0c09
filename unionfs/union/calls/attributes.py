"""Attributes of files, whatever their kind."""

from __future__ import annotations

from unionfs.linux import files
from unionfs.union import attributes, inode_flags, place, protection
from unionfs.union.attributes import Attr
from unionfs.union.calls.base import Calls
from unionfs.union.privileges import ROOT, Caller


class Attributes(Calls):
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

    def kill_privileges(self, ino: int, caller: Caller = ROOT, *, unless_capable: bool = False) -> bool:
        """Take the set-ID bits off a regular file that `caller` changes, who has no CAP_FSETID, or with
        `unless_capable` if he has none; False if that changed nothing."""
        with self._operation:
            node = self._stack.nodes.get(ino)
            return attributes.kill_privileges(self._stack, node, caller, unless_capable=unless_capable)

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
