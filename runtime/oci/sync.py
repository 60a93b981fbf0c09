"""What the parent and the child of a container say to each other: one datagram a message over a socketpair.

    parent (the waiting side)                        child (becomes the container)
      clone3 ──────────────────────────────────────▶ enter cgroups, namespaces, build the root
             ◀────────────────────────── BORN pid    only when there are namespaces to join: the child that
                                                     joined them has cloned the real one, its sibling, and ends;
                                                     the sibling's messages may come before it
             ◀────────────────────────── ROOT        of a new container: a look at its root, as SCM_RIGHTS
             ◀────────────────────────── CONSOLE     with a terminal: carries the pty's master as SCM_RIGHTS
             ◀────────────────────────── READY       everything is done but execve: create returns
      the caller attaches a network …
      LEAVE ───────────────────────────────────────▶ the parent may end: the child waits on without it

    starter (any process, over start.sock)           child
      START ───────────────────────────────────────▶ execve; a process that joined a container hears it from its
             ◀────────────────────────── STARTING    parent instead, and has no need to say that it was the one heard
             ◀────────────────────────── (end of file) the socket is close-on-exec: the command runs
             ◀────────────────────────── FAULT       at any time instead: step, errno and text, and the child ends

End of file anywhere else means that the other side is dead: the child then ends quietly, the parent looks at the
child's exit status. Messages are SOCK_SEQPACKET datagrams: kind byte, then fields joined by zero bytes.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

BORN, ROOT, CONSOLE, READY, LEAVE, START, STARTING, FAULT = b"B", b"L", b"C", b"R", b"D", b"S", b"E", b"F"

# What a fault means to the user; the values travel.
FAILED, NOT_FOUND, NOT_EXECUTABLE = "failed", "not-found", "not-executable"

_MOST = 8192  # bytes of a message


class Message(NamedTuple):
    kind: bytes  # b"" for end of file
    fields: tuple[str, ...] = ()
    fd: int | None = None


class Fault(NamedTuple):
    """What went wrong on the child's side. `step` completes "cannot …"; `reason` is errno's text or better."""

    meaning: str
    step: str
    reason: str

    def send(self, channel: Channel) -> None:
        channel.send(FAULT, self.meaning, self.step, self.reason)


class Channel:
    """One end. Not thread-safe; owns the socket."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(left), cls(right)

    @classmethod
    def adopt(cls, fd: int) -> Channel:
        """The end that is open on `fd`."""
        return cls(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd))

    def fileno(self) -> int:
        return self._socket.fileno()

    def detach(self) -> int:
        return self._socket.detach()

    def close(self) -> None:
        self._socket.close()

    def send(self, kind: bytes, *fields: str, fd: int | None = None) -> None:
        """BrokenPipeError if the other side is gone."""
        longest = _MOST // max(1, len(fields)) - 1  # a field that is too long must not take the next one's place
        raw = kind + b"\0".join(os.fsencode(field.replace("\0", ""))[:longest] for field in fields)
        if fd is None:
            self._socket.send(raw, socket.MSG_NOSIGNAL)
        else:
            socket.send_fds(self._socket, [raw], [fd], socket.MSG_NOSIGNAL)

    def receive(self) -> Message:
        """The next message; kind b"" when the other side is gone."""
        # Not socket.recv_fds: it drops its flags argument, and the descriptor would be inherited by every command.
        try:
            raw, ancillary, _, _ = self._socket.recvmsg(_MOST, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            raw, ancillary = b"", []
        if not raw:
            return Message(b"")
        fields = tuple(os.fsdecode(field) for field in raw[1:].split(b"\0")) if len(raw) > 1 else ()
        fds = [struct.unpack("i", data)[0] for _, kind, data in ancillary if kind == socket.SCM_RIGHTS]
        return Message(raw[:1], fields, fds[0] if fds else None)
