"""A message that was read from the device -> a Request. Total: any bytes end in a Request or in one of two exceptions.

The kernel is trusted not to lie; this is checked because a server that misreads one length corrupts files.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, NoReturn

from unionfs.fuse import abi, table

_HEADER_SIZE = abi.IN_HEADER.size
_unpack_header = abi.IN_HEADER.unpack_from


class Malformed(Exception):
    """The message cannot be served. `unique` is to be answered with the errno `code`, unless `answers` is False.

    ENOSYS: no such opcode is known. EIO: cut short, too many bytes, a length that lies, a name without its NUL.
    """

    def __init__(self, unique: int, code: int, answers: bool, sentence: str) -> None:
        super().__init__(sentence)
        self.unique = unique
        self.code = code
        self.answers = answers


class Unintelligible(Exception):
    """Nothing in the message can be answered, so some program would wait for ever: the session must end."""


class Request:
    """One request. `fields` is what the opcode's structure unpacked to, `names` its strings without their NULs.

    `data` is the rest: a view of the buffer that was parsed, valid until that is read into again; else b"".
    """

    __slots__ = ("data", "fields", "gid", "names", "nodeid", "opcode", "pid", "uid", "unique")

    def __init__(
        self, opcode: int, unique: int, nodeid: int, uid: int, gid: int, pid: int,
        fields: tuple[Any, ...], names: list[bytes], data: memoryview | bytes,
    ) -> None:
        self.opcode = opcode
        self.unique = unique
        self.nodeid = nodeid
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.fields = fields
        self.names = names
        self.data = data


# opcode -> unpack_from of its structure (None: it has none), offset of what follows it, number of names,
# index of the field that counts the data, bytes that it counts in, whether it is answered.
_Shape = tuple[Callable[..., tuple[Any, ...]] | None, int, int, int, int, bool]


def _shape(row: table.Row) -> _Shape:
    unpack, size = (None, 0) if row.request is None else (row.request.unpack_from, row.request.size)
    return unpack, _HEADER_SIZE + size, row.names, row.counted, row.unit, row.answers


_SHAPES = {row.opcode: _shape(row) for row in table.ROWS if row is not None}


def parse(message: memoryview) -> Request:
    """The request in `message`, which is exactly the bytes that one read of the device gave.

    Raises Malformed or Unintelligible, and nothing else. Extensions (fuse_ext_header) at its end are left out.
    """
    end = len(message)
    if end < _HEADER_SIZE:
        raise Unintelligible(f"a message of {end} bytes; its header has {_HEADER_SIZE}")
    length, opcode, unique, nodeid, uid, gid, pid, extensions = _unpack_header(message)
    shape = _SHAPES.get(opcode)
    if shape is None:
        _refuse(opcode, unique, errno.ENOSYS, True, "is not known")
    unpack, start, count, counted, unit, answers = shape
    if not unique and answers:
        # An answer with unique 0 would be a notification (fuse_dev_do_write).
        raise Unintelligible(f"{table.name(opcode)} with unique 0")
    if length != end:
        _refuse(opcode, unique, errno.EIO, answers, f"says it has {length} bytes, but has {end}")
    if extensions:
        end -= 8 * extensions
    if start > end:
        if opcode == abi.FUSE_INIT:
            return Request(opcode, unique, nodeid, uid, gid, pid, _init_fields(message, unique), [], b"")
        _refuse(opcode, unique, errno.EIO, answers, "is cut short")
    fields = () if unpack is None else unpack(message, _HEADER_SIZE)
    data: memoryview | bytes = b""
    if unit:
        stop = end - fields[counted] * unit
        if stop < start:
            _refuse(opcode, unique, errno.EIO, answers, "has less data than it says")
        data = message[stop:end]
        end = stop
    if count:
        names = message[start:end].tobytes().split(b"\0")
        if names.pop() or len(names) != count:
            _refuse(opcode, unique, errno.EIO, answers, f"should have {count} name(s), each ending in NUL")
    else:
        names = []
        if start != end and opcode != abi.FUSE_INIT:
            _refuse(opcode, unique, errno.EIO, answers, f"has {end - start} bytes too many")
    return Request(opcode, unique, nodeid, uid, gid, pid, fields, names, data)


def _init_fields(message: memoryview, unique: int) -> tuple[int, ...]:
    """INIT as it was before 7.36 (16 bytes), or of another major version: only major and minor are sure to be there.

    A later INIT may be longer as well. Which version this is, and whether it will do, is for init.negotiate to say.
    """
    words = (len(message) - _HEADER_SIZE) // 4
    if words < 2:
        _refuse(abi.FUSE_INIT, unique, errno.EIO, True, "is cut short")
    body = memoryview(message)[_HEADER_SIZE:]
    known = [int.from_bytes(body[at : at + 4], "little") for at in range(0, 4 * min(words, 5), 4)]
    return tuple(known + [0] * (5 - len(known)))


def _refuse(opcode: int, unique: int, code: int, answers: bool, what: str) -> NoReturn:
    if not unique and answers:
        raise Unintelligible(f"{table.name(opcode)} with unique 0")
    raise Malformed(unique, code, answers, f"{table.name(opcode)} (request {unique}) {what}")
