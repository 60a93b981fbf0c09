"""Requests that a kernel could send, requests that none would, and what must hold of every answer.

`Kernel` is what a kernel knows after the answers it had: node numbers with their lookups, and open files. Its requests
are valid ones about these; `mutated` makes others out of them.
"""

from __future__ import annotations

import os
import random
import stat
import struct

from unionfs.fuse import abi
from unionfs.fuse.request import Request
from unionfs.fuse.table import ROWS, Row
from unionfs.linux import consts
from unionfs.transport.memory import MemoryTransport

ROOT = abi.FUSE_ROOT_ID
_HEADER = abi.IN_HEADER.size
_LONGEST_READ = 1 << 20

NAMES = (b"a", b"b", b"c", b"d", b"e", b"lower", b"both", b"dir", b"deep", b"link", b"hard", b"\xff\n")
HOSTILE_NAMES = (
    b"", b".", b"..", b"a/b", b"/", b"../up", b"dir/", b".wh.a", b".wh..wh..opq", b".wh..wh.plnk", b".wh..wh.orph",
    b".wh.", b"x" * 251, b"x" * 252, b"x" * 255, b"x" * 300, b"a\0b", b"\0",
)  # fmt: skip
_XATTRS = (
    b"user.a", b"user.a", b"user.a", b"trusted.b", b"trusted.b", b"system.posix_acl_access",
    b"system.posix_acl_default", b"trusted.unionfs.origin", b"trusted.overlay.opaque", b"user.unionfs.nlink",
    b"user.", b"nonsense",
)  # fmt: skip
_KINDS = (stat.S_IFREG, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_OPEN_FLAGS = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND)
_COMMANDS = (
    consts.FS_IOC_GETFLAGS, consts.FS_IOC_SETFLAGS, consts.FS_IOC_FSGETXATTR, consts.FS_IOC_FSSETXATTR, 0x5401,
)  # fmt: skip
_FLAGS = {
    abi.FUSE_OPEN: _OPEN_FLAGS,
    abi.FUSE_CREATE: _OPEN_FLAGS,
    abi.FUSE_TMPFILE: _OPEN_FLAGS,
    abi.FUSE_RENAME2: (0, 1, 2, 4, 5),
    abi.FUSE_SETXATTR: (0, 0, 1, 2),
}
_INTERESTING = (
    0, 1, 2, 7, 255, 4096, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 62) + 1,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
# What a request's node has to be, if it is to come to anything.
_KIND_OF_NODE = dict.fromkeys(
    (abi.FUSE_LOOKUP, abi.FUSE_SYMLINK, abi.FUSE_MKNOD, abi.FUSE_MKDIR, abi.FUSE_UNLINK, abi.FUSE_RMDIR,
     abi.FUSE_RENAME, abi.FUSE_RENAME2, abi.FUSE_LINK, abi.FUSE_CREATE, abi.FUSE_TMPFILE, abi.FUSE_READDIR,
     abi.FUSE_READDIRPLUS), stat.S_IFDIR
) | {abi.FUSE_OPEN: stat.S_IFREG, abi.FUSE_IOCTL: stat.S_IFREG, abi.FUSE_READLINK: stat.S_IFLNK}  # fmt: skip
# What makes trees and files grow comes more often than the rest.
_OPCODES = [row.opcode for row in ROWS if row is not None] + 3 * [
    abi.FUSE_LOOKUP, abi.FUSE_LOOKUP, abi.FUSE_CREATE, abi.FUSE_MKDIR, abi.FUSE_OPEN, abi.FUSE_WRITE, abi.FUSE_READ,
    abi.FUSE_RELEASE, abi.FUSE_FORGET, abi.FUSE_RENAME2, abi.FUSE_UNLINK, abi.FUSE_READDIRPLUS, abi.FUSE_SETATTR,
]  # fmt: skip
# Requests of names that there are.
_OF_ENTRIES = {abi.FUSE_LOOKUP, abi.FUSE_UNLINK, abi.FUSE_RMDIR, abi.FUSE_RENAME, abi.FUSE_RENAME2}
_OF_ATTRIBUTES = {abi.FUSE_SETXATTR, abi.FUSE_GETXATTR, abi.FUSE_REMOVEXATTR}
_MAKE_AN_ENTRY = (abi.FUSE_LOOKUP, abi.FUSE_SYMLINK, abi.FUSE_MKNOD, abi.FUSE_MKDIR, abi.FUSE_LINK)


class Kernel:
    """`lookups` and `modes` of the numbers it knows; `files`, handle -> (number, backing id or 0); `opened`, the
    numbers that ever had one."""

    def __init__(self, pick: random.Random) -> None:
        self.random = pick
        self.lookups: dict[int, int] = {}
        self.modes = {ROOT: stat.S_IFDIR}
        self.files: dict[int, tuple[int, int]] = {}
        self.opened: set[int] = set()
        self._entries: list[tuple[int, bytes]] = [(ROOT, b"lower")]
        self._cookies = [0]
        self._unique = 1 << 20

    # Requests.

    def request(self) -> bytes:
        """One that a kernel could send, as far as it can tell."""
        opcode = self.random.choice(_OPCODES)
        row = ROWS[opcode]
        assert row is not None
        nodeid = self._node(_KIND_OF_NODE.get(opcode, 0))
        handle = self._handle()
        if opcode in (abi.FUSE_RELEASE, abi.FUSE_READ, abi.FUSE_WRITE) and handle:
            nodeid = self.files[handle][0]
        if opcode in _OF_ATTRIBUTES and self.random.random() < 0.5:
            nodeid = ROOT
        if opcode == abi.FUSE_FORGET and (unused := self._unused()):
            nodeid = self.random.choice(unused)
        names = [self._name(opcode, number) for number in range(row.names)]
        if opcode in _OF_ENTRIES and self.random.random() < 0.7:
            nodeid, names[0] = self.random.choice(self._entries)
        data = self._data(row) if row.data else b""
        body = b""
        if row.request is not None:
            fields = [self._field(opcode, name, nodeid, handle) for name in abi.FIELDS[row.request]]
            if row.data:
                fields[row.counted] = len(data) // row.unit
            body = row.request.pack(*fields)
        return self._message(opcode, nodeid, body + b"".join(name + b"\0" for name in names) + data)

    def _message(self, opcode: int, nodeid: int, body: bytes) -> bytes:
        self._unique += 2
        who = self.random.choice((0, 0, 1000))
        return abi.IN_HEADER.pack(
            _HEADER + len(body), opcode, self._unique, nodeid, who, who, self.random.randrange(1, 4), 0
        ) + body

    def _node(self, kind: int = 0) -> int:
        if kind and self.random.random() < 0.95:
            numbers = [number for number, mode in self.modes.items() if mode == kind]
            return self.random.choice(numbers or [ROOT])
        return self.random.choice(list(self.modes))

    def _handle(self) -> int:
        return self.random.choice(list(self.files)) if self.files else 0

    def _name(self, opcode: int, number: int) -> bytes:
        if opcode == abi.FUSE_SYMLINK and number:
            return self.random.choice((b"a", b"../dir", b"/", b"y" * 4000))
        if opcode in _OF_ATTRIBUTES:
            return self.random.choice(_XATTRS if opcode == abi.FUSE_SETXATTR else (*_XATTRS, b"security.capability"))
        return b"/" if opcode == abi.FUSE_TMPFILE else self.random.choice(NAMES)

    def _data(self, row: Row) -> bytes:
        if row.opcode == abi.FUSE_BATCH_FORGET:
            numbers = self.random.sample(self._unused(), min(3, len(self._unused())))
            return b"".join(abi.FORGET_ONE.pack(number, self._some_lookups(number)) for number in numbers)
        length = self.random.choice((0, 4, 28, 32, 100, 4096, 10000))
        return self.random.randbytes(length if row.unit == 1 else 32)

    def _unused(self) -> list[int]:
        """Without open files."""
        return sorted(self.lookups.keys() - {number for number, _ in self.files.values()})

    def _some_lookups(self, number: int) -> int:
        count = self.lookups.get(number, 0)
        return count if self.random.random() < 0.5 else self.random.randint(0, count)

    def _field(self, opcode: int, name: str, nodeid: int, handle: int) -> int:
        """The field `name` of fuse.h, with some sense in it."""
        pick = self.random
        if name in ("fh", "fh_in"):
            return handle
        if name == "fh_out":
            return self._handle()
        if name in ("newdir", "oldnodeid", "nodeid_out"):
            return self._node(stat.S_IFDIR if name == "newdir" else 0)
        if name == "nlookup":
            return self._some_lookups(nodeid)
        if name in ("offset", "off_in", "off_out"):
            listing = opcode in (abi.FUSE_READDIR, abi.FUSE_READDIRPLUS)
            return pick.choice(self._cookies) if listing else pick.choice((0, 0, 100, 4096, pick.randrange(20000)))
        if name in ("size", "len", "length"):
            return pick.choice((0, 1, 100, 4096, 5000, 65536))
        if name == "flags":
            return pick.choice(_FLAGS.get(opcode, (0,)))
        if name == "mode":
            if opcode == abi.FUSE_FALLOCATE:
                return pick.choice((0, 1, 3, 16, 17))
            kinds = _KINDS if opcode == abi.FUSE_MKNOD else (stat.S_IFREG,)
            return pick.choice(kinds) | pick.choice((0o644, 0o755, 0o600, 0o4755, 0o6777, 0o2644))
        return {
            "major": 7, "minor": 45, "umask": 0o22, "valid": pick.randrange(1 << 12), "mask": pick.randrange(8),
            "uid": pick.choice((0, 1000)), "gid": pick.choice((0, 1000)), "atime": pick.randrange(1 << 33),
            "mtime": pick.randrange(1 << 33), "rdev": pick.choice((0, 0x103)), "whence": pick.choice((3, 4)),
            "cmd": pick.choice(_COMMANDS), "out_size": pick.choice((4, 28)), "unique": self._unique,
            "open_flags": pick.choice((0, 1)), "write_flags": pick.choice((0, 4)), "fsync_flags": pick.choice((0, 1)),
        }.get(name, 0)  # fmt: skip

    # Answers.

    def learn(self, request: Request, said: bytes, transport: MemoryTransport) -> None:
        """What a kernel makes of the answer. AssertionError where it would fail it with EIO."""
        opcode, ok = request.opcode, not abi.OUT_HEADER.unpack_from(said)[1]
        if opcode in _MAKE_AN_ENTRY and ok:
            if self._entry(said, 16):
                self._entries = [*self._entries[-200:], (request.nodeid, request.names[0])]
        elif opcode in (abi.FUSE_CREATE, abi.FUSE_TMPFILE) and ok:
            number = self._entry(said, 16)
            self._opened(number, said, 16 + abi.ENTRY_OUT.size, transport)
        elif opcode == abi.FUSE_OPEN and ok:
            self._opened(request.nodeid, said, 16, transport)
        elif opcode == abi.FUSE_RELEASE and ok:
            del self.files[request.fields[0]]
        elif opcode in (abi.FUSE_READDIR, abi.FUSE_READDIRPLUS) and ok:
            self._listed(said, plus=opcode == abi.FUSE_READDIRPLUS)

    def forgets(self, counts: list[tuple[int, int]]) -> None:
        for number, count in counts:
            if number in self.lookups:
                self.lookups[number] -= count
                if self.lookups[number] <= 0:
                    del self.lookups[number], self.modes[number]

    def _entry(self, said: bytes, at: int) -> int:
        fields = abi.ENTRY_OUT.unpack_from(said, at)
        number, mode = fields[0], fields[15]
        if number not in (0, ROOT):
            assert self.modes.setdefault(number, stat.S_IFMT(mode)) == stat.S_IFMT(mode), "a number is used again"
            self.lookups[number] = self.lookups.get(number, 0) + 1
        return int(number)

    def _opened(self, number: int, said: bytes, at: int, transport: MemoryTransport) -> None:
        fh, flags, backing_id = abi.OPEN_OUT.unpack_from(said, at)
        assert fh not in self.files
        assert bool(flags & abi.FOPEN_PASSTHROUGH) == bool(backing_id)
        assert not backing_id or backing_id in transport.lent.files, "the backing id is not lent"
        others = {other for of, other in self.files.values() if of == number}
        assert others <= {backing_id}, "open files of one node do their I/O in different ways (fs/fuse/iomode.c)"
        self.files[fh] = number, backing_id
        self.opened.add(number)

    def _listed(self, said: bytes, *, plus: bool) -> None:
        at, names = 16, []
        while at < len(said):
            dirent = at + abi.ENTRY_OUT.size if plus else at
            _, offset, length, _ = abi.DIRENT.unpack_from(said, dirent)
            name = said[dirent + abi.DIRENT.size :][:length]
            assert len(name) == length > 0
            assert b"/" not in name and not name.startswith(b".wh.")
            names.append(name)
            self._cookies = [0, *self._cookies[-20:], offset]
            if plus and name not in (b".", b".."):
                assert self._entry(said, at)
            at = dirent + abi.DIRENT.size + (length + 7 & ~7)
        assert at == len(said)
        assert len(set(names)) == len(names), "a name is listed twice"


def sane(message: bytes, said: bytes | None) -> None:
    """One answer, of the right length and to the right request, or none where there is to be none."""
    opcode, unique = struct.unpack_from("<IQ", message, 4)
    row = ROWS[opcode] if opcode < len(ROWS) else None
    if row is not None and not row.answers:
        again = abi.OUT_HEADER.pack(16, -11, unique)
        assert said is None or (opcode == abi.FUSE_INTERRUPT and said == again), "an answer that nobody waits for"
        return
    assert said is not None, "no answer"
    length, error, whose = abi.OUT_HEADER.unpack_from(said)
    assert length == len(said)
    assert whose == unique
    assert -4096 < error <= 0
    if error:
        assert length == 16
    else:
        assert row is not None, "an opcode that nobody knows"
        least, most = _lengths(row, message)
        assert least <= length - 16 <= most, f"{row.name}: {length - 16} bytes, not {least} to {most}"


def _lengths(row: Row, message: bytes) -> tuple[int, int]:
    """Of an answer without its header (fs/fuse/dev.c, fuse_copy_out_args)."""
    fixed = row.reply.size if row.reply is not None else 0
    if row.opcode in (abi.FUSE_READ, abi.FUSE_READDIR, abi.FUSE_READDIRPLUS):
        return 0, min(abi.READ_IN.unpack_from(message, _HEADER)[2], _LONGEST_READ)
    if row.opcode in (abi.FUSE_GETXATTR, abi.FUSE_LISTXATTR):
        size = abi.GETXATTR_IN.unpack_from(message, _HEADER)[0]
        return (0, size) if size else (fixed, fixed)
    if row.opcode == abi.FUSE_READLINK:
        return 1, 4096
    if row.opcode == abi.FUSE_IOCTL:
        return fixed, fixed + abi.IOCTL_IN.unpack_from(message, _HEADER)[5]
    return fixed, fixed


def mutated(message: bytes, pick: random.Random) -> bytes:
    """Not what a kernel sends; with a header, and mostly one that is consistent."""
    changed = bytearray(message)
    for _ in range(pick.choice((1, 1, 1, 2, 4))):
        kind = pick.randrange(7)
        if kind == 0:
            for _ in range(pick.choice((1, 2, 8))):
                changed[pick.randrange(len(changed))] ^= 1 << pick.randrange(8)
        elif kind == 1:
            del changed[pick.randrange(_HEADER, len(changed) + 1) :]
        elif kind == 2:
            changed += pick.choice((b"\0", b"x", pick.randbytes(8), pick.randbytes(pick.randrange(1, 300))))
        elif kind == 3:
            changed[4:8] = struct.pack("<I", pick.choice((pick.randrange(60), 4096, pick.randrange(1 << 32))))
        elif kind == 4:
            size = pick.choice((4, 8))
            at = pick.randrange(8, len(changed), 4)
            changed[at : at + size] = pick.choice(_INTERESTING).to_bytes(8, "little")[:size]
        elif kind == 5:
            names = b"\0".join(pick.choice(HOSTILE_NAMES + NAMES) for _ in range(pick.choice((1, 1, 2)))) + b"\0"
            row = ROWS[changed[4]] if changed[4] < len(ROWS) else None
            start = _HEADER + (row.request.size if row is not None and row.request is not None else 0)
            changed[start:] = names
        else:
            changed[16:24] = pick.choice((0, 1, 2, 1 << 40, pick.randrange(1 << 64))).to_bytes(8, "little")
    if pick.random() < 0.9:
        changed[0:4] = struct.pack("<I", len(changed))
    if pick.random() < 0.02:
        del changed[pick.randrange(_HEADER) :]
    return bytes(changed)
