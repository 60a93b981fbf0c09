"""Waiting for another process of ours, which may be stopped, or in the kernel, as is everything that asks a union
whose server is stopped.

Every such wait ends: by the answer, by its bound, which the caller tells, or by a signal that is to end us.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress

from runtime.client.signals import PASSED_ON, held, signals

# How long an answer may still take once we were told to end, seconds: in most cases it is on its way, and
# what it tells of is what the signal is for.
GRACE = 1.0


def answered(fd: int, patience: float) -> bool:
    """Wait until `fd` can be read, at most `patience` seconds, or GRACE after a signal; whether it can.

    Signals have their effect afterwards: at once, or when they are no longer held (signals.held). For a process with
    one thread.
    """
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
