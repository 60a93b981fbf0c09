"""Netlink: messages as bytes, and a socket that sends requests and matches what comes back.

The codec (`pack`, `unpack`, `attribute`, `attributes`, `error_of`) is pure. `NetlinkSocket` belongs to the network
namespace in which it was made, wherever its thread goes later (netlink(7), network_namespaces(7)). One thread at a
time. Sources: netlink(7), linux/netlink.h, Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

# linux/netlink.h
NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP_INTR = 0x010
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
NLMSGERR_ATTR_MSG = 1

nlmsghdr = struct.Struct("=IHHII")  # length, type, flags, sequence, port
nlattr = struct.Struct("=HH")  # length without padding, type
nlmsgerr = struct.Struct("=i")  # negative errno; the request's header follows

_RECEIVE = 1 << 16  # more than the 32 KiB that the kernel puts into one part of a dump (af_netlink.c, netlink_dump)
_RESTARTS = 16


class Request(NamedTuple):
    """What to ask: `flags` without NLM_F_REQUEST and NLM_F_ACK, which the socket adds."""

    type: int
    flags: int
    body: bytes


class Message(NamedTuple):
    type: int
    flags: int
    seq: int
    port: int
    body: bytes


def _padding(length: int) -> bytes:
    return bytes(-length % 4)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return nlattr.pack(nlattr.size + len(value), kind) + value + _padding(len(value))


def string(kind: int, value: str) -> bytes:
    return attribute(kind, os.fsencode(value) + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute made of attributes (or of a header and attributes, as VETH_INFO_PEER)."""
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def attributes(body: bytes) -> dict[int, bytes]:
    """The attributes in `body` by type, without flag bits; of a repeated one the last. EBADMSG when cut short."""
    found = {}
    offset = 0
    while len(body) - offset >= nlattr.size:
        length, kind = nlattr.unpack_from(body, offset)
        if length < nlattr.size or offset + length > len(body):
            raise OSError(errno.EBADMSG, "a netlink attribute is longer than its message")
        found[kind & NLA_TYPE_MASK] = body[offset + nlattr.size : offset + length]
        offset += length + (-length % 4)
    return found


def text(value: bytes) -> str:
    return os.fsdecode(value.rstrip(b"\0"))


def pack(request: Request, flags: int, seq: int) -> bytes:
    """The message of a request with more `flags`, padded to four bytes."""
    length = nlmsghdr.size + len(request.body)
    return nlmsghdr.pack(length, request.type, request.flags | flags, seq, 0) + request.body + _padding(length)


def unpack(data: bytes) -> Iterator[Message]:
    """The messages of one datagram. EBADMSG when one is cut short."""
    offset = 0
    while len(data) - offset >= nlmsghdr.size:
        length, kind, flags, seq, port = nlmsghdr.unpack_from(data, offset)
        if length < nlmsghdr.size or offset + length > len(data):
            raise OSError(errno.EBADMSG, "a netlink message is longer than its datagram")
        yield Message(kind, flags, seq, port, data[offset + nlmsghdr.size : offset + length])
        offset += length + (-length % 4)


def error_of(message: Message) -> OSError | None:
    """What an NLMSG_ERROR or NLMSG_DONE says: None is success. The kernel's own sentence is added if it gives one."""
    (code,) = nlmsgerr.unpack_from(message.body)
    if code == 0:
        return None
    sentence = ""
    if message.flags & NLM_F_ACK_TLVS:
        if message.type == NLMSG_DONE:
            quoted = 0
        elif message.flags & NLM_F_CAPPED:
            quoted = nlmsghdr.size
        else:  # the whole request is repeated before the attributes
            quoted = nlmsghdr.unpack_from(message.body, nlmsgerr.size)[0]
        extra = attributes(message.body[nlmsgerr.size + quoted + (-quoted % 4) :])
        sentence = text(extra.get(NLMSGERR_ATTR_MSG, b""))
    words = os.strerror(-code)
    return OSError(-code, f"{words} ({sentence})" if sentence else words)


class NetlinkSocket:
    """A netlink socket of `protocol`, in the network namespace of the calling thread."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.bind((0, 0))
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            self.port: int = self._socket.getsockname()[0]
        except BaseException:
            self._socket.close()
            raise
        self._seq = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def request(self, *requests: Request) -> list[Message]:
        """Send all in one datagram and return what they answered, in order, without the acknowledgements.

        The kernel works through them in order and does not stop at one that fails (af_netlink.c, netlink_rcv_skb):
        the first failure is raised, as an OSError, when all have been answered.
        """
        first = self._seq + 1
        data = b""
        for request in requests:
            self._seq += 1
            data += pack(request, NLM_F_REQUEST | NLM_F_ACK, self._seq)
        self._socket.send(data)
        failure: OSError | None = None
        answers = []
        open_ends = len(requests)
        while open_ends:
            for message in self._receive(first):
                if message.type == NLMSG_ERROR:
                    failure = failure or error_of(message)
                    open_ends -= 1
                elif message.type != NLMSG_NOOP:
                    answers.append(message)
        if failure:
            raise failure
        return answers

    def dump(self, request: Request) -> list[Message]:
        """All parts of a dump, asked again when the table changed meanwhile. EINTR if it never holds still."""
        for _ in range(_RESTARTS):
            parts = self._dump_once(request)
            if parts is not None:
                return parts
        raise InterruptedError(errno.EINTR, "the kernel's table changed during every attempt to read it")

    def _dump_once(self, request: Request) -> list[Message] | None:
        self._seq += 1
        self._socket.send(pack(request, NLM_F_REQUEST | NLM_F_DUMP, self._seq))
        parts: list[Message] = []
        torn = False
        while True:
            for message in self._receive(self._seq):
                torn |= bool(message.flags & NLM_F_DUMP_INTR)
                if message.type in (NLMSG_ERROR, NLMSG_DONE):
                    failure = error_of(message)
                    if failure:
                        raise failure
                    return None if torn else parts
                parts.append(message)

    def _receive(self, oldest: int) -> list[Message]:
        """One datagram's messages that answer requests since `oldest`; those of an abandoned request are dropped."""
        while True:
            data, _, flags, sender = self._socket.recvmsg(_RECEIVE)
            if flags & socket.MSG_TRUNC:
                raise OSError(errno.EMSGSIZE, "a netlink answer is longer than 64 KiB")
            if sender[0] != 0:
                continue  # any process may send to a netlink port; the kernel is port 0
            return [m for m in unpack(data) if m.port == self.port and m.seq >= oldest]
