"""`run` as a resource: a container made of an image, started, and in the hands of its shim."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.client.signals import held
from runtime.client.waiting import answered
from runtime.engine.containers import Container
from runtime.engine.options import RunOptions
from runtime.engine.paths import Paths
from runtime.engine.shim import Shim
from runtime.engine.storage import Storage
from runtime.errors import ShimLost, step


@contextmanager
def running(
    paths: Paths, storage: Storage, options: RunOptions, window: tuple[int, int], *, debug: bool
) -> Iterator[tuple[Container, Shim]]:
    """The container and the line to its shim; leaving the block hangs up, which does not end the container.

    Signals wait for the block's end unless it catches them: there is a container now that they may be meant for.
    `window` is the terminal's rows and columns, (0, 0) if there is none. Raises RuntimeFault, DriverError or OSError;
    there is no container then.
    """
    with step("start a shim"):
        shim = Shim(debug=debug, answered=answered)  # it loads its modules while we load ours
    started = False
    try:
        from runtime.engine.create import create
        from runtime.engine.recover import recovered

        container, lock, mounts = create(recovered(paths), storage, options)
        with held():
            try:
                shim.order(container, lock, mounts, window)
                shim.started()
                started = True
                yield container, shim
            except ShimLost:  # before the signals that may come of it
                shim.wait()
                recovered(paths)
                raise
    except BaseException:
        if not started:
            shim.wait()
        raise
    finally:
        shim.close()
