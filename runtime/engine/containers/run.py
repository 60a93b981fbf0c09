"""`run` as a resource: a container made of an image, started, and in the hands of its task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from runtime.engine import waiting
from runtime.engine.containers.container import Container
from runtime.engine.containers.request import CreateRequest
from runtime.engine.installation import Installation
from runtime.engine.spawn import Task
from runtime.errors import TaskLost, step
from runtime.events import Listener


@contextmanager
def running(
    installation: Installation, request: CreateRequest, window: tuple[int, int], tell: Listener, *,
    debug: bool = False, answered: waiting.Answered = waiting.answered,
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[tuple[Container, Task]]:  # fmt: skip
    """The container and its task; leaving the block hangs up, which does not end the container.

    `window` is the terminal's rows and columns, (0, 0) if there is none. `held` is entered once there is a container:
    signals that come from then on may be meant for it. Raises RuntimeFault, DriverError or OSError: there is no
    container then, or one that rests as created.
    """
    with step("start a task"):
        task = Task(debug=debug, answered=answered)  # it loads its modules while we load ours
    try:
        try:
            from runtime.engine.containers.create import create
            from runtime.engine.containers.recovery import recover
            from runtime.engine.containers.start import hand_over

            recover(installation)
            container, lock, mounts = create(installation, request, tell)
            installation.close()  # the container may run for long, and the task has its own
        except BaseException:
            task.wait()
            raise
        with held():
            hand_over(installation, task, container, lock, mounts, window)
            try:
                yield container, task
            except TaskLost:  # before the signals that may come of it
                task.wait()
                recover(installation)
                raise
    finally:
        task.close()
