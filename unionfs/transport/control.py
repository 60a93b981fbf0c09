"""One Unix socket a mount, by which others find its server: /run/fuse-aufs/mounts/MAJOR:MINOR.PID.

The device number is the mount's st_dev, the same in every mount namespace; the process id keeps a server that is just
ending from unlinking its successor's socket when the kernel hands the number out again.

    client                      server
    connect, close                           wants the process only: the kernel tells it (SO_PEERCRED)
    "info\n" ------------------>
             <------------------ an object of JSON, end of stream
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping

INFO = b"info\n"

# What one client may take of a server's time, whatever it does.
PATIENCE_SECONDS = 1.0
# A client waits longer: its server may be attending to others.
_CLIENT_PATIENCE_SECONDS = 10.0

_LONGEST_REQUEST = 64

Facts = Callable[[], Mapping[str, object]]

_UCRED = struct.Struct("3i")  # struct ucred: pid uid gid (unix(7), SO_PEERCRED)


def directory() -> str:
    """Root's servers are all in one place; another user's in that user's."""
    if os.geteuid() == 0:
        return "/run/fuse-aufs/mounts"
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    return os.path.join(runtime, "fuse-aufs/mounts")


class Announcement:
    """A listening socket, mode 0600, for as long as the server serves. `path` and `socket` are immutable."""

    def __init__(self, device: str) -> None:
        """Raises OSError when the directory cannot be written to; the mount works without."""
        where = directory()
        for path, mode in ((os.path.dirname(where), 0o755), (where, 0o700)):
            try:
                os.mkdir(path, mode)
            except FileExistsError:
                pass  # by the runtime, or by the first mount
        _sweep(where)
        name = f"{device}.{os.getpid()}"
        self.path = os.path.join(where, name)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # Listening before it has its name: whoever finds it can connect, and a sweep does not take it for dead.
            hidden = os.path.join(where, f".{name}")
            self.socket.bind(hidden)
            os.chmod(hidden, 0o600)
            self.socket.listen()
            os.rename(hidden, self.path)
        except BaseException:
            self.socket.close()
            raise

    def withdraw(self) -> None:
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass  # somebody emptied /run
        self.socket.close()


class Server:
    """The process that serves a mount, held by a pidfd: it cannot be mistaken for a later one."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd

    def close(self) -> None:
        os.close(self.pidfd)


def is_complete(request: bytes) -> bool:
    """Whether a server has read all that it needs for an answer."""
    return request.endswith(b"\n") or len(request) >= _LONGEST_REQUEST


def answer(request: bytes, facts: Facts) -> bytes:
    """What to send for all that a client said: `facts()` as JSON, nothing to who said nothing, else what is wrong."""
    if not request:
        return b""
    import json  # 2 ms that every mount would pay

    if request != INFO:
        said: Mapping[str, object] = {"error": f"the request {request[:_LONGEST_REQUEST]!r} is not known"}
    else:
        try:
            said = facts()
        except Exception:  # a mistake of ours must not end the session
            import logging  # 4 ms that everything that unmounts would pay

            logging.getLogger(__name__).exception("the facts of this mount could not be gathered")
            said = {"error": "the server could not gather its facts; see its log"}
    return json.dumps(said).encode() + b"\n"


def serve_one(connection: socket.socket, facts: Facts) -> None:
    """Answer the client of `connection` and close it, within PATIENCE_SECONDS altogether."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with connection, contextlib.suppress(OSError):  # the client is gone, or stalls (TimeoutError)
        request = b""
        while not is_complete(request):
            connection.settimeout(max(0.0, deadline - time.monotonic()))
            part = connection.recv(_LONGEST_REQUEST)
            if not part:
                break
            request += part
        said = answer(request, facts)
        connection.settimeout(max(0.0, deadline - time.monotonic()))
        connection.sendall(said)


def find(device: str) -> Server | None:
    """The server of the mount with this device number ("0:53"), or None if it has died or cannot be seen."""
    for client in _connections(device):
        with contextlib.suppress(OSError):  # ended since, or in another pid namespace (pid 0)
            pid, _, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            return Server(pid, os.pidfd_open(pid))
    return None


def ask(device: str, request: bytes) -> bytes | None:
    """The answer of the server of the mount with this device number, or None where `find` would find none.

    Raises TimeoutError when it does not come.
    """
    for client in _connections(device):
        client.settimeout(_CLIENT_PATIENCE_SECONDS)
        said = b""
        with contextlib.suppress(ConnectionError):  # ended since
            client.sendall(request)
            while part := client.recv(1 << 16):
                said += part
        if said:
            return said
    return None


def _connections(device: str) -> Iterator[socket.socket]:
    """To each server that listens for this device number: the mount's, and perhaps one that is just ending."""
    where = directory()
    try:
        names = os.listdir(where)
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith(f"{device}."):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                try:
                    client.connect(os.path.join(where, name))
                except OSError:
                    continue  # killed, or ended since
                yield client


def _sweep(where: str) -> None:
    """Take away the sockets of servers that were killed."""
    for name in os.listdir(where):
        if name.startswith("."):
            continue
        path = os.path.join(where, name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
            try:
                client.connect(path)
            except ConnectionRefusedError:
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass  # another mount swept it first
            except OSError:
                pass  # a full backlog is a live server; ENOENT is one that withdrew
