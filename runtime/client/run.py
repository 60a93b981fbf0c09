"""`run` as a resource: a container made of an image, started, and in the hands of its task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.client.signals import held
from runtime.client.waiting import answered
from runtime.engine.containers.container import Container
from runtime.engine.containers.request import CreateRequest
from runtime.engine.installation import Installation
from runtime.engine.spawn import Task
from runtime.errors import TaskLost, step
from runtime.events import Listener


@contextmanager
def running(
    installation: Installation, request: CreateRequest, window: tuple[int, int], tell: Listener, *, debug: bool
) -> Iterator[tuple[Container, Task]]:
    """The container and the line to its task; leaving the block hangs up, which does not end the container.

    Signals wait for the block's end unless it catches them: there is a container now that they may be meant for.
    `window` is the terminal's rows and columns, (0, 0) if there is none. Raises RuntimeFault, DriverError or OSError:
    there is no container then, or one that rests as created.
    """
    with step("start a task"):
        task = Task(debug=debug, answered=answered)  # it loads its modules while we load ours
    started = False
    try:
        from runtime.engine.containers.create import create
        from runtime.engine.containers.recovery import recover

        recover(installation)
        container, lock, mounts = create(installation, request, tell)
        installation.close()  # the container may run for long, and the task has its own
        with held():
            try:
                task.order(container, lock, mounts, window)
                task.started()
                started = True
                yield container, task
            except TaskLost:  # before the signals that may come of it
                task.wait()
                recover(installation)
                raise
    except BaseException:
        if not started:
            task.wait()
        raise
    finally:
        task.close()
