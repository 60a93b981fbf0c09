"""What requests have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unionfs.fuse import reply
from unionfs.fuse.request import Request
from unionfs.serve.filesystem import Filesystem
from unionfs.serve.passthrough import Passthrough
from unionfs.union.attributes import Attr
from unionfs.union.privileges import Caller

Reply = bytes | Sequence[bytes]

_DEFAULT_ACL = b"system.posix_acl_default"


class Requests:
    """WireOperations, as far as each kind of requests needs it. `passthrough` and `_longest`, the bytes that a read
    may ask for, are known after INIT."""

    _fs: Filesystem
    _keeps_for: int
    _longest: int
    _forget_attributes: Callable[[int], None]
    passthrough: Passthrough | None

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

    def _mode(self, parent: int, mode: int, umask: int) -> int:
        """The mode of a new entry. A default ACL of the directory takes the place of the umask (acl(5))."""
        if not mode & umask:
            return mode
        try:
            self._fs.getxattr(parent, _DEFAULT_ACL)
        except OSError:
            return mode & ~umask
        return mode

    def _kill_privileges(self, number: int, caller: Caller, *, unless_capable: bool = False) -> None:
        """Take set-ID bits away because the file is changed by somebody who may not keep them. The kernel takes what it
        knows of the mode for good (execve(2) goes by it) until it is told."""
        if self._fs.kill_privileges(number, caller, unless_capable=unless_capable):
            for known in {number, self._fs.current(number)}:
                self._forget_attributes(known)


def caller_of(r: Request) -> Caller:
    return Caller(r.uid, r.gid, r.pid)
