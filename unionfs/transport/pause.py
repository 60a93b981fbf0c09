"""How the leader of the workers waits for the next request, in one of three ways.

    sleeps       in poll(2): that costs a wake-up across processors when it comes, more than most requests take
    spins        while requests follow each other closely: it goes on asking for a while before it sleeps
    takes turns  the same on a machine of two processors, where another process spins instead (`companion`)
"""

from __future__ import annotations

import os
import select
import time

from unionfs.fuse import abi
from unionfs.transport.companion import Companion

# Pauses so many times as long as the leader may spin for end a succession of requests; shorter ones happen in it.
_LONG = 20


class Pause:
    """Of the thread that leads, one at a time. `takes_turns`: with a client that asks again only when it has its
    answer."""

    def __init__(self, spin_us: int) -> None:
        """`spin_us` bounds the asking before it sleeps, 0 for none."""
        self._spin_ns = spin_us * 1000
        processors = len(os.sched_getaffinity(0))
        self._companion = _companion(spin_us) if spin_us and processors == 2 else None
        self._may_spin = spin_us > 0 and processors > 2
        self._spins = False
        self.takes_turns = False

    def until_request(self, fd: int, buffers: tuple[bytearray], poll: select.poll, last: memoryview) -> int:
        """Until there may be a request: spin, or sleep. The length of the message if spinning got it, else 0. `last` is
        the message that was answered last."""
        clock = time.perf_counter_ns
        start = clock()
        if self._spins:
            until = start + self._spin_ns
            while clock() < until:
                try:
                    return os.readv(fd, buffers)
                except BlockingIOError:
                    pass
                except OSError:
                    return 0  # who reads meets it again
        poll.poll()
        pause = clock() - start
        self._spins = self._may_spin and pause < self._spin_ns
        if self._companion is not None:
            self.takes_turns = pause < self._spin_ns
            if self.takes_turns:
                self._companion.turn(_pid(last))
            elif pause > _LONG * self._spin_ns:
                self._companion.rest()
        return 0

    def rest(self) -> None:
        """The leader has something else to do."""
        if self._companion is not None:
            self._companion.rest()

    def do_without_companion(self) -> bool:
        """Give its process back, where there are too few; False if there was none."""
        companion, self._companion = self._companion, None
        if companion is not None:
            companion.close()
        return companion is not None

    def close(self) -> None:
        if self._companion is not None:
            self._companion.close()


def _companion(spin_us: int) -> Companion | None:
    try:
        return Companion(spin_us)
    except OSError:
        return None  # no process to be had


def _pid(message: memoryview) -> int:
    pid: int = abi.IN_HEADER.unpack_from(message)[6]
    return pid
