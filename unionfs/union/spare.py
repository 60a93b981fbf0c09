"""Descriptors that are kept for operations which need some for a moment, where open files have taken all others.

So who opens files meets EMFILE a little earlier, and everybody goes on looking, listing and changing. They are given
back when an operation fails for want of one (see `again`), and taken again before the next that is to stay open.
"""

from __future__ import annotations

import contextlib
import os

# What the copy-up of a file with its directory takes.
_MOST = 8


class Spare:
    """Guarded by Stack.lock."""

    def __init__(self, limit: int) -> None:
        """`limit` is how many descriptors the process may have (RLIMIT_NOFILE)."""
        self._most = min(_MOST, limit // 5)
        self._fds: list[int] = []
        with contextlib.suppress(OSError):
            self.take()

    def take(self) -> None:
        """Before a descriptor is opened that stays. EMFILE or ENFILE where that would leave none to spare."""
        while len(self._fds) < self._most:
            self._fds.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))

    def give(self) -> bool:
        """False if there were none."""
        any_kept = bool(self._fds)
        while self._fds:
            os.close(self._fds.pop())
        return any_kept
