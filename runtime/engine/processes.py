"""Processes that are not our children, held by pidfd so that a reused pid is never signalled."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator

from unionfs.linux.mounts import mountinfo


class Process:
    """A process of this machine; it may end at any time. A context manager that closes the descriptor."""

    def __init__(self, pid: int) -> None:
        """ProcessLookupError when there is none."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def send(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            pass

    def ended(self, timeout: float) -> bool:
        """Wait for its end, at most `timeout` seconds; whether it has ended."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))


def mount_namespace(pid: int | str = "self") -> int:
    """The inode number of a process's mount namespace. OSError when there is no such process."""
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def holding(namespace: int, target: str) -> Iterator[Process]:
    """Processes in the mount namespace with that inode number, unless it is our own, that serve `target`: something is
    mounted there, or it is an argument of the command that is to mount it.

    Without the second condition the number of a namespace that has gone could be a stranger's by now. The descriptor
    comes before the look: what /proc then shows is that process's.
    """
    if namespace == mount_namespace():
        return
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            process = Process(int(entry))
        except ProcessLookupError:
            continue
        if _holds(process.pid, namespace, target):
            yield process
        else:
            process.__exit__()


def _holds(pid: int, namespace: int, target: str) -> bool:
    try:
        if mount_namespace(pid) != namespace:
            return False
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            if os.fsencode(target) in command.read().split(b"\0"):
                return True
        return any(point.target == target for point in mountinfo(pid))
    except OSError:
        return False  # it has ended
