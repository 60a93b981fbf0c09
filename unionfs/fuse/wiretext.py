"""A message as one line of text, for --debug: `rx 6: LOOKUP i1 ['zurl'] by 0:0 pid 41`, `tx 6: ENOENT`.

Fields that are 0 are left out. Total, as request.parse is: any bytes make a line.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import Any

from unionfs.fuse import abi, table
from unionfs.fuse.request import Malformed, Request, Unintelligible, parse

_OCTAL = {"mode", "umask"}
_HEX = {
    "valid", "mask", "sx_mask", "cmd", "events", "revents", "attributes", "attributes_mask", "flags2",
    "lock_owner", "owner",
}

_NOTIFICATIONS: dict[int, tuple[str, Struct | None]] = {
    abi.FUSE_NOTIFY_POLL: ("POLL", abi.NOTIFY_POLL_WAKEUP_OUT),
    abi.FUSE_NOTIFY_INVAL_INODE: ("INVAL_INODE", abi.NOTIFY_INVAL_INODE_OUT),
    abi.FUSE_NOTIFY_INVAL_ENTRY: ("INVAL_ENTRY", abi.NOTIFY_INVAL_ENTRY_OUT),
    abi.FUSE_NOTIFY_STORE: ("STORE", abi.NOTIFY_STORE_OUT),
    abi.FUSE_NOTIFY_RETRIEVE: ("RETRIEVE", abi.NOTIFY_RETRIEVE_OUT),
    abi.FUSE_NOTIFY_DELETE: ("DELETE", abi.NOTIFY_DELETE_OUT),
    abi.FUSE_NOTIFY_RESEND: ("RESEND", None),
    abi.FUSE_NOTIFY_INC_EPOCH: ("INC_EPOCH", None),
    abi.FUSE_NOTIFY_PRUNE: ("PRUNE", abi.NOTIFY_PRUNE_OUT),
}
_NAMED = (abi.FUSE_NOTIFY_INVAL_ENTRY, abi.FUSE_NOTIFY_DELETE)


def rx(message: memoryview | bytes) -> str:
    """A message that was read."""
    try:
        request = parse(memoryview(message))
    except Malformed as error:
        return f"rx {error.unique}: malformed: {error}"
    except Unintelligible as error:
        return f"rx: unintelligible: {error}"
    return f"rx {request.unique}: {of(request)}"


def of(request: Request) -> str:
    """A request that was parsed."""
    row = table.ROWS[request.opcode]
    words = [table.name(request.opcode), f"i{request.nodeid}"]
    if request.names:
        words.append(f"[{_quoted(request.names)}]")
    if row is not None and row.request is not None:
        words += _fields(row.request, request.fields)
    if request.opcode == abi.FUSE_BATCH_FORGET:
        words += [f"i{nodeid}-{nlookup}" for nodeid, nlookup in abi.FORGET_ONE.iter_unpack(request.data)]
    elif request.data:
        words.append(f"{len(request.data)} bytes")
    words.append(f"by {request.uid}:{request.gid} pid {request.pid}")
    return " ".join(words)


def tx(message: bytes, request: Request | None = None) -> str:
    """A message that is written. With the request that it answers, the fields of the answer are told as well."""
    if len(message) < abi.OUT_HEADER.size:
        return f"tx: {len(message)} bytes"
    _, code, unique = abi.OUT_HEADER.unpack_from(message)
    body = message[abi.OUT_HEADER.size :]
    if not unique:
        return f"tx: {_notification(code, body)}"
    if code:
        return f"tx {unique}: {errno.errorcode.get(-code, str(code))}"
    words = [f"tx {unique}: OK"]
    layout = None if request is None else _reply(request)
    if layout is not None and len(body) >= layout.size:
        words += _fields(layout, layout.unpack_from(body))
        body = body[layout.size :]
    if body:
        words.append(f"{len(body)} bytes")
    return " ".join(words)


def _reply(request: Request) -> Struct | None:
    row = table.ROWS[request.opcode]
    if row is None or (request.opcode in (abi.FUSE_GETXATTR, abi.FUSE_LISTXATTR) and request.fields[0]):
        return None
    return row.reply


def _notification(code: int, body: bytes) -> str:
    name, layout = _NOTIFICATIONS.get(code, (f"notification {code}", None))
    words = [name]
    if layout is not None and len(body) >= layout.size:
        words += _fields(layout, layout.unpack_from(body))
        body = body[layout.size :]
    if code in _NAMED:
        words.append(f"[{_quoted([body.rstrip(bytes(1))])}]")
    elif body:
        words.append(f"{len(body)} bytes")
    return " ".join(words)


def _fields(layout: Struct, values: tuple[Any, ...]) -> list[str]:
    return [f"{name}={_value(name, value)}" for name, value in zip(abi.FIELDS[layout], values, strict=True) if value]


def _value(name: str, value: int) -> str:
    if name in _OCTAL:
        return f"0{value:o}"
    return f"{value:#x}" if name in _HEX or name.endswith("flags") else str(value)


def _quoted(names: list[bytes]) -> str:
    return ", ".join(repr(name)[1:] for name in names)
