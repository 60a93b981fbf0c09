"""A later command's line to the task of a running container: send a signal, look at its root, wait for its end."""

from __future__ import annotations

import select
import socket
import time

from runtime.engine import frames
from runtime.engine.containers.container import Container
from runtime.engine.line import Line, short_path

SOCKET = "task.sock"  # in the run directory


def _milliseconds(deadline: float | None) -> float | None:
    """How long to poll: poll(2) takes an int, which is 24 days."""
    return None if deadline is None else min(max(deadline - time.monotonic(), 0.0), 86400.0) * 1000


class Watch(Line):
    """One connection that has begun with nothing, or with FOLLOW."""

    def __enter__(self) -> Watch:
        return self

    def signal(self, number: int) -> None:
        self.send(frames.pack_number(frames.SIGNAL, number))  # whether it hears: one that does not is ending

    def news(self, deadline: float | None = None) -> bool:
        """Wait until the log has grown (True) or everything has ended (False). TimeoutError at `deadline`
        (time.monotonic)."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        while not poll.poll(_milliseconds(deadline)):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError
        heard = self.receive()
        self.received.clear()
        return heard

    def look(self, timeout: float) -> int | None:
        """A descriptor of the container's root, to be closed (oci/newroot.py, look); None when everything has ended.

        TimeoutError: the task does not answer. The log's growth that it tells meanwhile is dropped.
        """
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        try:
            self.sock.sendall(frames.pack(frames.LOOK))
            while poll.poll(_milliseconds(deadline)):
                data, descriptors = frames.receive_with_descriptors(self.sock, 1)
                if not data:
                    return None
                if descriptors:
                    return descriptors[0]
        except ConnectionError:
            return None
        raise TimeoutError

    def ended(self, timeout: float | None = None) -> bool:
        """Wait until the task has given everything back, at most `timeout` seconds; whether it has."""
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while self.news(deadline):
                pass
        except TimeoutError:
            return False
        return True


def connect(container: Container, *, follow: bool = False) -> Watch | None:
    """A line to the container's task, one that hears when the log grows if it is to `follow`; None when there is no
    task."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(container.run_directory) as path:
            sock.connect(f"{path}/{SOCKET}")
    except (FileNotFoundError, NotADirectoryError, ConnectionError):
        sock.close()
        return None
    watch = Watch(sock)
    if follow:
        watch.send(frames.pack(frames.FOLLOW))
    return watch
