"""Wire requests over one Filesystem: bytes in, bytes out. Names and numbers are translated here, nothing is decided.

`answer` gives each request exactly one reply, or none where the protocol has none: OSError becomes its errno, anything
unknown EIO and a traceback in the log. It is called by many threads at once. What it does not implement is ENOSYS, and
the kernel does not ask again: OPENDIR (then every directory is cached until it changes), FLUSH (a write is in the
branch's file before it is answered), locks (the kernel's own are right for one machine), POLL, BMAP.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

from unionfs.fuse import abi, reply, table
from unionfs.fuse.init import Agreement
from unionfs.fuse.request import Malformed, Request, parse
from unionfs.fuse.table import ROWS
from unionfs.serve.filesystem import Filesystem
from unionfs.serve.passthrough import Outdated, Passthrough
from unionfs.serve.requests.attributes import AttributeRequests
from unionfs.serve.requests.base import Reply
from unionfs.serve.requests.directories import DirectoryRequests
from unionfs.serve.requests.files import FileRequests
from unionfs.serve.requests.names import NameRequests
from unionfs.union.again import CURABLE, Again
from unionfs.union.errors import fail

_log = logging.getLogger(__name__)

# How many of a request's names are entries of a directory. TMPFILE's is "/" (fs/dcache.c, d_alloc_anon).
_ENTRY_NAMES = {
    abi.FUSE_LOOKUP: 1, abi.FUSE_SYMLINK: 1, abi.FUSE_MKNOD: 1, abi.FUSE_MKDIR: 1, abi.FUSE_UNLINK: 1,
    abi.FUSE_RMDIR: 1, abi.FUSE_RENAME: 2, abi.FUSE_RENAME2: 2, abi.FUSE_LINK: 1, abi.FUSE_CREATE: 1,
}  # fmt: skip
_NO_NAMES = frozenset({b"", b".", b".."})


class WireOperations(NameRequests, AttributeRequests, FileRequests, DirectoryRequests):
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
        self.passthrough = None
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

    # The whole.

    def statfs(self, r: Request) -> Reply:
        return reply.statfs(r.unique, self._fs.statfs())

    def syncfs(self, r: Request) -> Reply:
        self._fs.syncfs()
        return reply.ok(r.unique)


def _check_names(r: Request) -> None:
    """EINVAL for what would lead elsewhere. The kernel sends no such name; `.` and `..` it looks up for an export."""
    for name in r.names[: _ENTRY_NAMES[r.opcode]]:
        if b"/" in name or (name in _NO_NAMES and (r.opcode != abi.FUSE_LOOKUP or not name)):
            fail(errno.EINVAL, name)
