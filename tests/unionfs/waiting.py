"""Waiting for the end of a server or of a mount, for as long as a loaded machine may take."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

from tests.mounting import Union
from unionfs.transport import control

PATIENCE_MS = 60_000


def ended(server: control.Server, within_ms: int = PATIENCE_MS) -> bool:
    poll = select.poll()
    poll.register(server.pidfd, select.POLLIN)
    return bool(poll.poll(within_ms))


def wait_until(condition: Callable[[], bool]) -> None:
    """For what no event tells of: that one mount has gone, that a line is in a log."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_until_unmounted(union: Union) -> None:
    wait_until(lambda: not union.mounted)
