"""Waiting for another process of ours, with a bound: it may be stopped, or in the kernel, as is everything that asks a
union whose server is stopped."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

_KILLED = 1.0  # seconds that a killed process may take to end

# Waits until a descriptor can be read, at most so many seconds; whether it can. A client with a user has another one,
# which the user's signals cut short (client/waiting.py).
Answered = Callable[[int, float], bool]


def answered(fd: int, patience: float) -> bool:
    """The Answered of a caller to whom nobody sends signals."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def collect(pid: int, patience: float) -> None:
    """Wait for the end of our child. After `patience` seconds it is killed; one that is in the kernel then, and does
    not come out, is left to the system."""
    pidfd = os.pidfd_open(pid)
    try:
        if not answered(pidfd, patience):
            os.kill(pid, signal.SIGKILL)
            if not answered(pidfd, _KILLED):
                return
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
