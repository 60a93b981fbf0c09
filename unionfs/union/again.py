"""What may succeed when it is tried again: an operation that fails has not happened.

EWOULDBLOCK  somebody has a lease on the file. Trying to open it has told him, and he gets as long as fcntl(2) promises
             (/proc/sys/fs/lease-break-time); then the kernel takes the lease away. The wait is the caller's alone, who
             would have had it on the branch's file system too.
EMFILE       the descriptors that only save us work, and those to spare, are given back, once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

CURABLE = frozenset({errno.EWOULDBLOCK, errno.EMFILE, errno.ENFILE})

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1
# Of the kernel, by default.
_LEASE_SECONDS = 45


class Again:
    """Of one operation. `pause` is how many seconds to wait before it is tried again."""

    __slots__ = ("_deadline", "_give_back", "pause")

    def __init__(self, give_back: Callable[[], bool]) -> None:
        """`give_back` closes descriptors, if there are any to be spared: UnionFs.give_back_descriptors."""
        self._give_back: Callable[[], bool] | None = give_back
        self._deadline = 0.0
        self.pause = 0.0

    def cures(self, error: OSError) -> bool:
        """Whether to try once more."""
        if error.errno == errno.EWOULDBLOCK:
            now = time.monotonic()
            self._deadline = self._deadline or now + _lease_seconds()
            self.pause = min(max(2 * self.pause, _SHORTEST_PAUSE), _LONGEST_PAUSE)
            return now < self._deadline
        give_back, self._give_back = self._give_back, None
        self.pause = 0.0
        return error.errno in CURABLE and give_back is not None and give_back()


def _lease_seconds() -> float:
    try:
        with open("/proc/sys/fs/lease-break-time", "rb") as seconds:
            return int(seconds.read()) + 2 * _LONGEST_PAUSE
    except (OSError, ValueError):
        return _LEASE_SECONDS
