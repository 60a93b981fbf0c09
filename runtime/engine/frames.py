"""The talk between a task, the process that keeps one container (engine/task), and its clients.

Both sides send frames: a kind, the number of a process of the container, the length of the payload, the payload.
Process 0 is the container's first one; the others have the number that STARTED tells. The client that has the container
started has one end of a socket pair:

    client                                          task
      │  ORDERS {id, mounts, window …}                │   with the container's lock as a descriptor
      │ ────────────────────────────────────────────▶ │   mounts, makes and starts the container
      │  STARTED        or  FAULT {fault, message}    │   after a FAULT: everything taken down again, then the end
      │ ◀──────────────────────────────────────────── │

Any other connects to <state>/containers/ID/task.sock, and begins with one of these, if with any:

      │  EXEC {process, stdin}                        │   one more process, by its OCI process object
      │  ATTACH                                       │   to the streams of a process that is there
      │ ────────────────────────────────────────────▶ │   STARTED or FAULT, as above
      │  WAIT                                         │   for the EXIT of a process, and for none of its streams

From there on they are alike:

      │  OUT, ERR bytes                               │   of the processes that it has started or is attached to
      │ ◀──────────────────────────────────────────── │
      │  IN bytes                               IN_OK │   one IN at a time: SIGNAL and RESIZE never queue behind it
      │ ────────────────────────────────────────────▶ │
      │  IN_END, SIGNAL number, RESIZE rows columns   │
      │ ────────────────────────────────────────────▶ │
      │  FOLLOW                                  GREW │   when the log has, and once at first
      │  LOOK                                    LOOK │   with a descriptor of the container's root (oci/newroot, look)
      │ ────────────────────────────────────────────▶ │
      │  EXIT {code, trouble}                         │   of process 0 when all is taken down
      │ ◀──────────────────────────────────────────── │

A client may hang up at any time: its processes go on, without their input, and an added one without its output too;
one that has not been STARTED yet is given up. The EXIT of what was its EXEC is
the last that a client hears. Whoever had a process started slows it, if it reads its output slowly, as
a pipe would. Whoever is only attached and does not keep up is hung up on. The end of file comes when all is taken down.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

_header = struct.Struct(">BII")
_number = struct.Struct(">I")
_window = struct.Struct(">HH")

(
    ORDERS, STARTED, FAULT, OUT, ERR, IN, IN_OK, IN_END, SIGNAL, RESIZE, GREW, EXIT, LOOK, EXEC, ATTACH, WAIT, FOLLOW,
) = range(17)  # fmt: skip

# The most bytes of a stream in one frame; also the longest payload of any frame but ORDERS, EXEC and FAULT.
CHUNK = 1 << 16
LONGEST = 1 << 23


class Frame(NamedTuple):
    kind: int
    payload: bytes
    process: int = 0

    def json(self) -> Any:
        return json.loads(self.payload)

    def number(self) -> int:
        (value,) = _number.unpack(self.payload)
        return int(value)

    def window(self) -> tuple[int, int]:
        rows, columns = _window.unpack(self.payload)
        return rows, columns


def pack(kind: int, payload: bytes = b"", *, process: int = 0) -> bytes:
    return _header.pack(kind, process, len(payload)) + payload


def pack_json(kind: int, value: Any, *, process: int = 0) -> bytes:
    return pack(kind, json.dumps(value, separators=(",", ":")).encode(), process=process)


def pack_number(kind: int, value: int, *, process: int = 0) -> bytes:
    return pack(kind, _number.pack(value), process=process)


def pack_window(rows: int, columns: int, *, process: int = 0) -> bytes:
    return pack(RESIZE, _window.pack(rows & 0xFFFF, columns & 0xFFFF), process=process)


class Splitter:
    """Bytes in, whole frames out. Raises ValueError for a length that no peer of ours sends."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._rest += data
        while len(self._rest) >= _header.size:
            kind, process, length = _header.unpack_from(self._rest)
            if length > LONGEST:
                raise ValueError(f"a frame of {length} bytes")
            end = _header.size + length
            if len(self._rest) < end:
                return
            payload = bytes(self._rest[_header.size : end])
            del self._rest[:end]
            yield Frame(kind, payload, process)


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
