"""One Unix socket a mount, by which others find its server: /run/fuse-aufs/mounts/MAJOR:MINOR.PID.

The device number is the mount's st_dev, the same in every mount namespace; the process id keeps a server that is just
ending from unlinking its successor's socket when the kernel hands the number out again.
"""

from __future__ import annotations

import os
import socket
import struct

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


def find(device: str) -> Server | None:
    """The server of the mount with this device number ("0:53"), or None if it has died or cannot be seen."""
    where = directory()
    try:
        names = os.listdir(where)
    except FileNotFoundError:
        return None
    for name in names:
        if name.startswith(f"{device}."):
            server = _listener(os.path.join(where, name))
            if server is not None:
                return server
    return None


def _listener(path: str) -> Server | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
            pid, _, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            return Server(pid, os.pidfd_open(pid))
        except OSError:
            return None  # killed, or ended since, or in another pid namespace (pid 0)


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
