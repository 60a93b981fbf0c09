"""`run` as a resource: a container made of an image, started, and in the hands of its shim."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.engine.containers import Container, ContainerStore
from runtime.engine.options import RunOptions
from runtime.engine.recover import recover
from runtime.engine.start import Shim
from runtime.errors import ShimLost


@contextmanager
def running(
    store: ContainerStore, driver: str, options: RunOptions, window: tuple[int, int], *, debug: bool
) -> Iterator[tuple[Container, Shim]]:
    """The container and the line to its shim; leaving the block hangs up, which does not end the container.

    `window` is the terminal's rows and columns, (0, 0) if there is none. Raises RuntimeFault, DriverError or OSError;
    there is no container then.
    """
    shim = Shim(debug=debug)  # it loads its modules while the container is made
    try:
        from runtime.engine.create import create

        container, lock, mounts = create(store, driver, options)
        shim.start(container, lock, mounts, window)
        yield container, shim
    except ShimLost:
        shim.wait()
        recover(store)
        raise
    except BaseException:
        shim.wait()
        raise
    finally:
        shim.close()
