"""Getting pyfuse3 out of a read that waits.

pyfuse3 polls /dev/fuse and then reads it, blocking and with the interpreter's lock held. When the process that sent a
request is killed between the two, the kernel takes the request back (fs/fuse/dev.c, request_wait_answer) and the
read waits for the next one, which may never come: no thread can go on, and work that was under way in one is never
answered. With nothing under way that is harmless. So while something is, a timer interrupts the read (EINTR: pyfuse3
polls again).
"""

from __future__ import annotations

import signal
from types import TracebackType

_SECONDS = 0.02


class Interrupts:
    """`with interrupts:` around every wait of the main thread for another one. May be entered many times at once;
    the main thread only. Invariant: the timer runs while `_waiting` is not 0."""

    def __init__(self) -> None:
        # Python sets handlers without SA_RESTART: system calls see EINTR, and Python's own are retried (PEP 475).
        signal.signal(signal.SIGALRM, lambda number, frame: None)
        self._waiting = 0

    def __enter__(self) -> None:
        self._waiting += 1
        if self._waiting == 1:
            signal.setitimer(signal.ITIMER_REAL, _SECONDS, _SECONDS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._waiting -= 1
        if self._waiting == 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
