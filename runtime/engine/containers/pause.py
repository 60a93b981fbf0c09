"""A container whose processes stand still for a while.

They must go on whatever becomes of us: a child waits for our end, by a pipe that the kernel closes, and thaws them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.engine.containers.container import Container
from runtime.engine.state import Status
from runtime.errors import StateError
from runtime.oci.cgroups import Cgroup

_PATIENCE = 10.0  # seconds: a process in the kernel stops when it comes out


@contextmanager
def paused(container: Container) -> Iterator[None]:
    """Stop the container's processes for the time of the `with`; one that is not running is left as it is.

    StateError when they do not stop in time.
    """
    if container.state().status is not Status.RUNNING:
        yield
        return
    cgroup = Cgroup(container.config.spec["linux"]["cgroupsPath"])
    ours, child = _guard(cgroup)
    try:
        cgroup.freeze(True)
        _await_frozen(cgroup, container)
        yield
    finally:
        os.close(ours)
        os.waitpid(child, 0)


def _guard(cgroup: Cgroup) -> tuple[int, int]:
    """A process that thaws when the descriptor given is closed; its pid."""
    theirs, ours = os.pipe()
    child = os.fork()
    if child:
        os.close(theirs)
        return ours, child
    try:
        os.setsid()  # ctrl-C is not for it
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        os.close(ours)
        os.read(theirs, 1)
        cgroup.freeze(False)
    finally:
        os._exit(0)


def _await_frozen(cgroup: Cgroup, container: Container) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not cgroup.is_frozen():
        if time.monotonic() > deadline:
            raise StateError(f"the processes of {container.config.name} do not stop; commit it with --pause=false")
        time.sleep(0.001)  # v1 has no event for it
