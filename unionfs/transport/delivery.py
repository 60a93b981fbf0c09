"""Where a mount goes: to a mount point, or into the hands of who asked for it.

    who asks                            server
    a pair of sockets, start ---------> makes the mount, attached nowhere; INIT, and one answer
                   <------------------- HANDED, with descriptors of the mount and of the server (pidfd)
                                        has none of the mount any more

What is handed over ends with whatever refers to it last: a descriptor, a place where it was attached, a file that is
open in it. The server ends then; its pidfd says when its branches are closed.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection
from typing import Protocol

from unionfs.linux.mounts import detached, mountinfo
from unionfs.transport import device
from unionfs.union import mark

HANDED = b"\n"


class Delivery(Protocol):
    """`name` is for the log. `identity` is the mount's (transport/device.py), "" before it is known. With `is_detached`
    nobody but who has the mount knows where it is."""

    name: str
    identity: str
    is_detached: bool

    def mount(self, flags: Collection[str], allow_other: bool, *, dont_mask: bool) -> int:
        """Make the mount; the descriptor to serve. `dont_mask` says that INIT will ask for FUSE_DONT_MASK. OSError."""

    def deliver(self) -> None:
        """Return when the mount has answered, and is where it is to go. Another thread serves it. OSError."""

    def close(self) -> None:
        """Let go of a mount that was not delivered."""


class AtMountPoint:
    """At the directory `name`, absolute and resolved."""

    is_detached = False

    def __init__(self, name: str, shown: device.Shown = device.AS_EVER) -> None:
        self.name = name
        self._shown = shown
        self.identity = ""
        self._mark = mark.new()

    def mount(self, flags: Collection[str], allow_other: bool, *, dont_mask: bool) -> int:
        fd = device.attach(self.name, flags, allow_other, self._mark, self._shown)
        # Not by its name: it may have been moved, or covered by another one.
        shown = [identity for point in mountinfo() if (identity := device.identity_of(point))]
        ours = [identity for identity in shown if identity.endswith(f".{self._mark}")]
        if not ours:
            os.close(fd)
            raise OSError(errno.ENOENT, "somebody unmounted it before it could be served", self.name)
        self.identity = ours[0]
        return fd

    def deliver(self) -> None:
        os.stat(self.name)

    def close(self) -> None:
        pass


class HandedOver:
    """To the other end of `connection`, a Unix socket."""

    name = "detached mount"
    is_detached = True

    def __init__(self, connection: socket.socket, shown: device.Shown = device.AS_EVER) -> None:
        self._shown = shown
        self.identity = ""
        self._mark = mark.new()
        self._connection = connection
        self._mount = -1

    def mount(self, flags: Collection[str], allow_other: bool, *, dont_mask: bool) -> int:
        if os.geteuid() != 0:
            raise OSError(errno.EPERM, "only root can have a mount that is attached nowhere", self.name)
        if dont_mask:
            fd, self._mount = device.make_detached(flags, self._mark, self._shown)
            return fd
        served: list[int] = []
        self._mount = detached(lambda place: served.append(device.mount(place, flags, self._mark, self._shown)))
        return served[0]

    def deliver(self) -> None:
        try:
            number = os.fstat(self._mount).st_dev
            self.identity = device.identity(f"{os.major(number)}:{os.minor(number)}", self._mark)
            server = os.pidfd_open(os.getpid())
            try:
                socket.send_fds(self._connection, [HANDED], [self._mount, server])
            except OSError as error:
                raise OSError(error.errno, f"nobody takes it any more ({error.strerror})", self.name) from None
            finally:
                os.close(server)
        finally:
            self.close()
        self._connection.close()

    def close(self) -> None:
        if self._mount >= 0:
            os.close(self._mount)
            self._mount = -1


def receive(connection: socket.socket) -> tuple[int, int]:
    """Descriptors of the mount and of its server (a pidfd), close-on-exec, from the other end of a HandedOver's.

    Raises OSError: ECONNRESET, the server ended before.
    """
    said, fds, _, _ = socket.recv_fds(connection, len(HANDED), 2, socket.MSG_CMSG_CLOEXEC)
    if said != HANDED or len(fds) != 2:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.ECONNRESET, "the server ended before the mount answered")
    return fds[0], fds[1]
