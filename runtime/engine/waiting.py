"""Waiting for another process of ours, which may be stopped, or in the kernel, as everything is that asks a union
whose server is.

Every such wait ends: by the answer, by its bound, which the caller tells, or by a signal that is to end us.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress

# How long an answer may still take once we were told to end, seconds: it is on its way in most cases, and the signal is
# for what it says is there.
GRACE = 1.0
_KILLED = 1.0  # and how long a killed process may take


def answered(fd: int, patience: float) -> bool:
    """Wait until `fd` can be read, at most `patience` seconds, or GRACE from a signal on; whether it can.

    Signals have their effect afterwards: at once, or when they are no longer held (attach.held). For a process with one
    thread.
    """
    from runtime.engine.attach import PASSED_ON, held, signals  # late: that is about what start.py waits for

    deadline = time.monotonic() + patience
    came: list[int] = []
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    with held():
        with signals() as caught:
            poll.register(caught, select.POLLIN)
            ready: set[int] = set()
            while fd not in ready and (left := deadline - time.monotonic()) > 0:
                ready = {number for number, _ in poll.poll(left * 1000)}
                if caught in ready and (now := _read(caught)):
                    came += now
                    deadline = min(deadline, time.monotonic() + GRACE)
            signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # what has not come by now is not ours to catch
            came += _read(caught)
        for number in came:
            os.kill(os.getpid(), number)
    return fd in ready


def _read(caught: int) -> list[int]:
    with suppress(BlockingIOError):
        return [number for number in os.read(caught, 512) if number != signal.SIGWINCH]
    return []


def collect(pid: int, patience: float) -> None:
    """Wait for the end of our child. After `patience` seconds it is killed; one that is in the kernel then, and does
    not come out, is left to the system."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(patience * 1000):
            os.kill(pid, signal.SIGKILL)
            if not poll.poll(_KILLED * 1000):
                return
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
