"""Processes that are not our children, held by pidfd so that a reused pid is never signalled."""

from __future__ import annotations

import os
import select


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

    def ended(self, timeout: float) -> bool:
        """Wait for its end, at most `timeout` seconds; whether it has ended."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
