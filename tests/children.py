"""Functions run in forked processes, so that they can be killed, or race."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable


class Child:
    """A forked process; wait() gives its exit status, or minus the signal that killed it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def is_running(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is None

    def wait(self) -> int:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status


def in_child(function: Callable[[], object]) -> Child:
    """Run `function` in a forked process: status 0, or 1 with the traceback on stderr. It opens its own drivers."""
    pid = os.fork()
    if pid:
        return Child(pid)
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
