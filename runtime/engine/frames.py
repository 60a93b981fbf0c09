"""The talk between a shim and the process that started it, and between a shim and any later command.

Both sides send frames: a kind, the length of the payload, the payload. Over the socket pair made at start:

    caller                                          shim
      │  ORDERS {id, mounts, window …}                │   with the container's lock as a descriptor
      │ ────────────────────────────────────────────▶ │   mounts, makes and starts the container
      │  STARTED        or  FAULT {fault, message}    │   after a FAULT: everything taken down again, then the end
      │ ◀──────────────────────────────────────────── │
      │  OUT, ERR bytes                               │   a slow reader slows the container, as a pipe would
      │ ◀──────────────────────────────────────────── │
      │  IN bytes                               IN_OK │   one IN at a time: SIGNAL and RESIZE never queue behind it
      │ ────────────────────────────────────────────▶ │
      │  IN_END, SIGNAL number, RESIZE rows columns   │
      │ ────────────────────────────────────────────▶ │
      │  EXIT {code, trouble}                         │   sent when all is taken down
      │ ◀──────────────────────────────────────────── │

The caller may hang up at any time; the container goes on. Whoever connects to <state>/containers/ID/shim.sock is a
watcher: it may send SIGNAL, receives GREW when the log has (what the socket does not take is left out: there are
notices enough in it), and the end of file when all is taken down. To LOOK it gets a LOOK, and with it a descriptor of
the container's root (oci/newroot.py, look).
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

_header = struct.Struct(">BI")
_number = struct.Struct(">I")
_window = struct.Struct(">HH")

ORDERS, STARTED, FAULT, OUT, ERR, IN, IN_OK, IN_END, SIGNAL, RESIZE, GREW, EXIT, LOOK = range(13)

# The most bytes of a stream in one frame; also the longest payload of any frame but ORDERS and FAULT.
CHUNK = 1 << 16
LONGEST = 1 << 20


class Frame(NamedTuple):
    kind: int
    payload: bytes

    def json(self) -> Any:
        return json.loads(self.payload)

    def number(self) -> int:
        (value,) = _number.unpack(self.payload)
        return int(value)

    def window(self) -> tuple[int, int]:
        rows, columns = _window.unpack(self.payload)
        return rows, columns


def pack(kind: int, payload: bytes = b"") -> bytes:
    return _header.pack(kind, len(payload)) + payload


def pack_json(kind: int, value: Any) -> bytes:
    return pack(kind, json.dumps(value, separators=(",", ":")).encode())


def pack_number(kind: int, value: int) -> bytes:
    return pack(kind, _number.pack(value))


def pack_window(rows: int, columns: int) -> bytes:
    return pack(RESIZE, _window.pack(rows & 0xFFFF, columns & 0xFFFF))


class Splitter:
    """Bytes in, whole frames out. Raises ValueError for a length that no peer of ours sends."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._rest += data
        while len(self._rest) >= _header.size:
            kind, length = _header.unpack_from(self._rest)
            if length > LONGEST:
                raise ValueError(f"a frame of {length} bytes")
            end = _header.size + length
            if len(self._rest) < end:
                return
            payload = bytes(self._rest[_header.size : end])
            del self._rest[:end]
            yield Frame(kind, payload)


def receive(sock: socket.socket, splitter: Splitter) -> list[Frame] | None:
    """The frames that one read of a readable socket completes; None at the peer's end of file."""
    try:
        data = sock.recv(CHUNK + _header.size)
    except (BlockingIOError, InterruptedError):
        return []
    except ConnectionError:
        return None
    return list(splitter.feed(data)) if data else None


def receive_with_descriptors(sock: socket.socket, most: int) -> tuple[bytes, list[int]]:
    """What one read gives, and up to `most` descriptors that came with it, close-on-exec.

    Not socket.recv_fds: in Python 3.11 it drops its flags, and whatever is started next would inherit them.
    """
    data, ancillary, _, _ = sock.recvmsg(CHUNK, socket.CMSG_SPACE(4 * most), socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for _, kind, payload in ancillary:
        if kind == socket.SCM_RIGHTS:
            descriptors += struct.unpack(f"{len(payload) // 4}i", payload)
    return data, descriptors
