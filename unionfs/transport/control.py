"""One Unix socket a mount, by which others find its server: /run/fuse-aufs/mounts/IDENTITY; a user's own in his runtime
directory, or without one at an address in no directory.

The identity (transport/device.py) is shown by the mount itself, in every mount namespace, and no other mount ever has
it: a server that is stopped, or just ending, is not taken for that of a mount which got its device number.

    client                      server
    connect, close                           wants the process only: the kernel tells it (SO_PEERCRED)
    "info\n" ------------------>
             <------------------ an object of JSON, end of stream
    "access noatime\n" --------> another word that the server knows (`remount`): {} or {"error": what is wrong}
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping

from unionfs.linux.files import fd_path
from unionfs.linux.processes import is_stopped

INFO = b"info\n"

# What one client may take of a server's time, whatever it does.
PATIENCE_SECONDS = 1.0
# A client waits longer: its server may be attending to others.
_CLIENT_PATIENCE_SECONDS = 10.0
# After which a server asks again for what it could not have to serve a client: a descriptor, or memory.
PAUSE_SECONDS = 1.0

# Descriptors that are kept for a client: of its connection, and of what is read to answer it.
_SPARE = 3

_LONGEST_REQUEST = 64
_LONGEST_PATH = 108  # of what a client connects to: sun_path (unix(7)), with its zero

# What a server answers, by the first word that it is asked; the rest is given to the function.
Answers = Mapping[bytes, Callable[[bytes], Mapping[str, object]]]

_UCRED = struct.Struct("3i")  # struct ucred: pid uid gid (unix(7), SO_PEERCRED)
_TIMEVAL = struct.Struct("ll")  # struct timeval (socket(7), SO_SNDTIMEO)


def directory() -> str:
    """Root's servers are all in one place; another user's in that user's."""
    if os.geteuid() == 0:
        return "/run/fuse-aufs/mounts"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(runtime):  # to be ignored, says the XDG Base Directory Specification
        runtime = f"/run/user/{os.geteuid()}"
    return os.path.join(runtime, "fuse-aufs/mounts")


def _addresses(identity: str) -> list[str]:
    """Where the server of a mount may be. A user need not have a runtime directory (without a login, under cron, in a
    container), and who asks may have another environment than who mounted. The last address is a name in no directory
    (unix(7), abstract), which everybody can take and connect to: so both sides look who the other is."""
    addresses = [os.path.join(directory(), identity)]
    if uid := os.geteuid():
        addresses += [f"/run/user/{uid}/fuse-aufs/mounts/{identity}", f"\0fuse-aufs/{uid}/{identity}"]
    return list(dict.fromkeys(addresses))


def _is_one_of_us(peer: socket.socket) -> bool:
    return _credentials(peer)[1] in (0, os.geteuid())


class Announcement:
    """A listening socket, mode 0600, for as long as the server serves. `path` and `socket` are immutable."""

    def __init__(self, identity: str) -> None:
        """Raises OSError when the directory cannot be written to; the mount works without."""
        self._spare: list[int] = []
        self._directory = -1
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self.path = self._bind(identity)
        except BaseException:
            self.socket.close()
            self._close_directory()
            raise
        self._keep_spare()

    def _bind(self, identity: str) -> str:
        """The address."""
        try:
            return self._bind_in(directory(), identity)
        except OSError:
            self._close_directory()
            address = _addresses(identity)[-1]
            if not address.startswith("\0"):
                raise
        self.socket.bind(address)
        self.socket.listen()
        return address

    def _bind_in(self, where: str, identity: str) -> str:
        path, hidden = os.path.join(where, identity), f".{identity}"
        if len(os.fsencode(path)) >= _LONGEST_PATH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        fd = self._directory = _made_private(where)
        _sweep(fd)
        try:
            # Listening before it has its name: whoever finds it can connect, and a sweep does not take it for dead.
            self.socket.bind(os.fsdecode(fd_path(fd)) + f"/{hidden}")
            os.chmod(hidden, 0o600, dir_fd=fd)
            self.socket.listen()
            os.rename(hidden, identity, src_dir_fd=fd, dst_dir_fd=fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(hidden, dir_fd=fd)
            raise
        return path

    def _close_directory(self) -> None:
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    @contextlib.contextmanager
    def client(self) -> Iterator[socket.socket | None]:
        """The next client, to be served within; None if it has gone. Where the mount's users have taken all
        descriptors, by those that are kept for it.

        Raises OSError when there is nothing to serve it by (EMFILE, ENFILE, ENOMEM, ENOBUFS). The socket stays readable
        then: look at it again after PAUSE_SECONDS.
        """
        try:
            yield self._accept()
        finally:
            self._keep_spare()

    def _accept(self) -> socket.socket | None:
        for last in (False, True):
            try:
                client = self.socket.accept()[0]
                if _is_one_of_us(client):
                    return client
                client.close()
                return None
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR):
                    return None
                if last or error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
            self._give_spare()
        raise AssertionError("unreachable")

    def _keep_spare(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._spare) < _SPARE:
                self._spare.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))

    def _give_spare(self) -> None:
        while self._spare:
            os.close(self._spare.pop())

    def withdraw(self) -> None:
        if self._directory >= 0:
            with contextlib.suppress(FileNotFoundError):  # somebody emptied /run
                os.unlink(os.path.basename(self.path), dir_fd=self._directory)
        self._close_directory()
        self.socket.close()
        self._give_spare()


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


def answer(request: bytes, answers: Answers) -> bytes:
    """What to send for all that a client said: what is answered to that, as JSON, nothing to who said nothing, else
    what is wrong."""
    if not request:
        return b""
    import json  # 2 ms that every mount would pay

    word, _, rest = request.removesuffix(b"\n").partition(b" ")
    if not request.endswith(b"\n") or word not in answers:
        said: Mapping[str, object] = {"error": f"the request {request[:_LONGEST_REQUEST]!r} is not known"}
    else:
        try:
            said = answers[word](rest)
        except Exception:  # a mistake of ours must not end the session
            import logging  # 4 ms that everything that unmounts would pay

            logging.getLogger(__name__).exception("%s could not be answered", word.decode())
            said = {"error": "the server could not gather its facts; see its log"}
    return json.dumps(said).encode() + b"\n"


def serve_one(connection: socket.socket, answers: Answers) -> None:
    """Answer the client of `connection` and close it, whose words and ears may take PATIENCE_SECONDS each."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with connection, contextlib.suppress(OSError):  # the client is gone, or stalls (TimeoutError)
        request = b""
        while not is_complete(request):
            connection.settimeout(max(0.0, deadline - time.monotonic()))
            part = connection.recv(_LONGEST_REQUEST)
            if not part:
                break
            request += part
        said = answer(request, answers)
        connection.settimeout(PATIENCE_SECONDS)
        connection.sendall(said)


def find(identity: str) -> Server | None:
    """The server of the mount with this identity, or None if it has died or cannot be seen. It is not waited for: the
    kernel tells who listens.

    Raises TimeoutError when too many wait for it already.
    """
    with _connection(identity) as client:
        if client is not None:
            with contextlib.suppress(OSError):  # ended since, or in another pid namespace (pid 0)
                pid = _listener(client)
                return Server(pid, os.pidfd_open(pid))
    return None


def ask(identity: str, request: bytes, *, patience: float = _CLIENT_PATIENCE_SECONDS) -> bytes | None:
    """The answer of the server of the mount with this identity, or None where `find` would find none.

    Raises TimeoutError when it does not come, with the reason if it is known.
    """
    said = b""
    with _connection(identity) as client:
        if client is not None:
            if is_stopped(pid := _listener(client)):
                raise TimeoutError(errno.ETIMEDOUT, f"process {pid} is stopped")
            client.settimeout(patience)
            with contextlib.suppress(ConnectionError):  # ended since
                client.sendall(request)
                while part := client.recv(1 << 16):
                    said += part
    return said or None


@contextlib.contextmanager
def _connection(identity: str) -> Iterator[socket.socket | None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        # What connect(2) may wait for a place in the queue of a server that is stopped. Python's own timeout would not
        # wait (EAGAIN).
        seconds, microseconds = divmod(int(_CLIENT_PATIENCE_SECONDS * 10**6), 10**6)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(seconds, microseconds))
        yield client if any(_connects(client, address) for address in _addresses(identity)) else None


def _connects(client: socket.socket, address: str) -> bool:
    try:
        client.connect(address)
    except BlockingIOError:
        raise TimeoutError(errno.ETIMEDOUT, "too many wait for it") from None
    except OSError:
        return False  # killed, or ended since
    return _is_one_of_us(client)


def _listener(client: socket.socket) -> int:
    return _credentials(client)[0]


def _credentials(peer: socket.socket) -> tuple[int, int]:
    """(process, user)"""
    pid, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid), int(uid)


def _made_private(where: str) -> int:
    """A descriptor of the directory `where`, made if it is missing, and the one above it too.

    A runtime directory can be said to be where others write, and they to have been there first. So neither may be a
    link, another's, or writable to others (EPERM): in it nobody else makes, replaces or takes away anything.
    """
    above, last = os.path.split(where)
    fd = os.open(os.path.dirname(above), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for name, mode in ((os.path.basename(above), 0o755), (last, 0o700)):
        outer = fd
        try:
            with contextlib.suppress(FileExistsError):  # by the runtime, or by the first mount
                os.mkdir(name, mode, dir_fd=outer)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=outer)
        finally:
            os.close(outer)
        entry = os.fstat(fd)
        if entry.st_uid != os.geteuid() or entry.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            os.close(fd)
            raise OSError(errno.EPERM, "others may write to it", where)
    return fd


def _sweep(directory: int) -> None:
    """Take away the sockets of servers that were killed. Those that live notice nothing: a socket of another type at
    that address is refused for its type (EPROTOTYPE, unix(7)), and only where nobody listens for that."""
    within = os.fsdecode(fd_path(directory))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        for name in os.listdir(directory):
            try:
                # What is no socket refuses connections as well (unix_find_bsd(), net/unix/af_unix.c).
                if name.startswith(".") or not stat.S_ISSOCK(os.lstat(f"{within}/{name}").st_mode):
                    continue
                client.connect(f"{within}/{name}")
            except ConnectionRefusedError:
                with contextlib.suppress(FileNotFoundError):  # another mount swept it first
                    os.unlink(name, dir_fd=directory)
            except OSError:
                pass  # EPROTOTYPE; ENOENT is one that withdrew
