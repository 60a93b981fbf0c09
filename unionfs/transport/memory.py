"""A session without a kernel: the bytes of a request in, the bytes of its answer out. For tests and measurements.

What a kernel would keep account of is kept here: files lent to it, and INIT, with which it begins.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from unionfs.fuse import abi, init
from unionfs.fuse.init import Agreement, Refused
from unionfs.serve.lending import LENDS
from unionfs.serve.passthrough import Passthrough
from unionfs.serve.wire import WireOperations
from unionfs.transport.direct import WISH
from unionfs.union.fs import UnionFs

# All flags that this protocol version has.
EVERYTHING = (1 << 43) - 1


class Lent:
    """The files that are lent, by backing id. `refuses`: an errno for who lends another one, or 0.

    An id that was not lent or was taken back already is a KeyError: the kernel's ENOENT would go unnoticed.
    """

    def __init__(self) -> None:
        self.files: dict[int, tuple[int, int]] = {}  # (st_dev, st_ino)
        self.writable: set[int] = set()
        self.given: dict[int, bytes] = {}
        self.refuses = 0
        self._last = 0

    def lend(self, fd: int, *, writable: bool) -> int:
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        entry = os.fstat(fd)
        self._last += 1
        self.files[self._last] = entry.st_dev, entry.st_ino
        if writable:
            self.writable.add(self._last)
        return self._last

    def give(self, number: int, content: bytes) -> None:
        self.given[number] = content

    def take_back(self, backing_id: int) -> None:
        del self.files[backing_id]
        self.writable.discard(backing_id)


class MemoryTransport:
    """One connection. `lent` is what it was lent, `forgotten` the numbers whose attributes it was told to ask for
    again; `operations` counts requests. Calls come one at a time."""

    def __init__(self, fs: UnionFs, *, passthrough: str = "programs", offers: int = EVERYTHING) -> None:
        """`offers`: the flags of INIT (64 bits), which is the first request. OSError EPROTO when it is refused."""
        self.fs = fs
        self._lends = LENDS[passthrough]
        self.lent = Lent()
        self.forgotten: list[int] = []
        self.operations = WireOperations(
            fs, init=_negotiate, passthrough=self._passthrough, forget_attributes=self.forgotten.append
        )
        self._unique = 0
        fields = (7, abi.FUSE_KERNEL_MINOR_VERSION, 1 << 20, offers & 0xFFFFFFFF, offers >> 32)
        said = self.ask(abi.FUSE_INIT, 0, abi.INIT_IN.pack(*fields))
        code = -abi.OUT_HEADER.unpack_from(said or bytes(16))[1]
        if code or said is None:
            raise OSError(code, os.strerror(code))

    def _passthrough(self, agreed: Agreement) -> Passthrough | None:
        if not agreed.passthrough:
            return None
        return Passthrough(self.fs, self.lent, lends=self._lends, forget_attributes=self.forgotten.append)

    def ask(self, opcode: int, nodeid: int, body: bytes = b"", *, uid: int = 0, gid: int = 0) -> bytes | None:
        """The answer to a request with this body, or None; fuse.request.Unintelligible."""
        self._unique += 2  # the lowest bit is for INTERRUPT
        header = abi.IN_HEADER.pack(abi.IN_HEADER.size + len(body), opcode, self._unique, nodeid, uid, gid, 1, 0)
        return self.send(header + body)

    def send(self, message: bytes) -> bytes | None:
        """The answer to a whole message, which is gone from its buffer when this returns, as of a session's threads."""
        buffer = bytearray(message)
        said = self.operations.answer(memoryview(buffer))
        buffer[:] = bytes(len(buffer))
        return said if isinstance(said, bytes | None) else b"".join(said)


def _negotiate(fields: tuple[Any, ...]) -> Agreement:
    try:
        return init.negotiate(fields, WISH)
    except Refused as refused:
        raise OSError(errno.EPROTO, str(refused)) from None
