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


def holding(target: str) -> Iterator[Process]:
    """Other processes in whose mount namespace something is mounted at `target`, unless it is our own namespace.

    The descriptor comes before the look: what mountinfo then shows is that process's.
    """
    own = os.readlink("/proc/self/ns/mnt")
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            process = Process(int(entry))
        except ProcessLookupError:
            continue
        if _holds(process.pid, target, own):
            yield process
        else:
            process.__exit__()


def _holds(pid: int, target: str, own: str) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/ns/mnt") == own:
            return False
        return any(point.target == target for point in mountinfo(pid))
    except OSError:
        return False  # it has ended
