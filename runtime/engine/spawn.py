"""Starting a task and having it start a container: the caller's end of the drawing in frames.py."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence

from drivers.api import Mount
from runtime import errors
from runtime.engine import frames, waiting
from runtime.engine.containers.container import Container
from runtime.engine.line import Line
from runtime.oci import sealed

# The descriptor that a task finds its socket on; task/main.py has the same number.
_SOCKET = 3
_PATIENCE = 180.0  # seconds for a task to start a container: longer than it waits for a lock (drivers.disk.locks)
_END = 10.0  # and for it to end that has no more to do
_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "task")


class Task:
    """A task, seen by its starter: a process that waits for its orders. Started early, it loads its modules while the
    container is prepared. Once it has `started` a container, `line` has the streams of the container's first process.
    """

    def __init__(self, *, debug: bool = False, answered: waiting.Answered = waiting.answered) -> None:
        self._answered = answered
        ours, theirs = socket.socketpair()
        self.line = Line(ours)
        # posix_spawn and not subprocess: importing that takes longer than the spawn.
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            *([] if debug else [(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]),
            (os.POSIX_SPAWN_DUP2, theirs.fileno(), _SOCKET),
        ]
        command = [sys.executable, "-I", "-S", _PROGRAM, os.pathsep.join(sys.path)]
        # The container's process is this interpreter until its execve: it must not be able to overwrite it.
        interpreter = sealed.seal(sys.executable)
        try:
            self._pid = os.posix_spawn(
                f"/proc/self/fd/{interpreter}", command, os.environ, file_actions=actions, setsid=True
            )
        finally:
            os.close(interpreter)
            theirs.close()

    def order(self, container: Container, lock: int, mounts: Sequence[Mount], window: tuple[int, int]) -> None:
        """Hand the container over, to be started. The lock is the task's from here on; the descriptor is closed."""
        orders = {
            "root": container.paths.root, "state": container.paths.state, "id": container.id,
            "mounts": [[mount.type, mount.source, list(mount.options)] for mount in mounts],
            "rows": window[0], "columns": window[1],
        }  # fmt: skip
        try:
            socket.send_fds(self.line.sock, [frames.pack_json(frames.ORDERS, orders)], [lock])
        except OSError:
            raise errors.TaskLost("the task could not be started") from None
        finally:
            os.close(lock)

    def started(self) -> None:
        """Return when the container's command runs. Raises the fault that it met instead; TaskLost also when that takes
        too long or a signal comes meanwhile, which then has its effect: the task is killed."""
        while not self.line.received:
            if not self._answered(self.line.fileno(), _PATIENCE):
                os.kill(self._pid, signal.SIGKILL)
                raise errors.TaskLost(
                    f"the container has not been started within {_PATIENCE:g} seconds: its task does not answer"
                )
            if not self.line.receive():
                raise errors.TaskLost("the process that was to keep the container ended before it had started it")
        first = self.line.received.pop(0)
        if first.kind == frames.FAULT:
            fault = first.json()
            raise errors.by_name(fault["fault"], fault["message"])

    def close(self) -> None:
        """Hang up. A task without a container ends then, one with a container goes on."""
        self.line.close()

    def wait(self) -> None:
        """Hang up and wait for the task's end. It must have no container, have sent EXIT or FAULT, or be lost.

        One that does not end, as it is stopped, is killed; one that is in the kernel and does not come out is left.
        """
        self.close()
        if self._pid:
            waiting.collect(self._pid, _END)
            self._pid = 0
