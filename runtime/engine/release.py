"""Taking back what a running container holds: processes, cgroups, its endpoint, and last its record.

Its root file system is not among it: that ends with its processes and its shim (engine/shim).

Every step is idempotent and bears that the steps before it never happened, so the shim at the end of a container and
recovery after a killed shim take the same path. A step that fails does not stop the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from runtime.engine import records
from runtime.engine.containers import Container, ContainerStore
from runtime.engine.paths import Paths
from runtime.engine.state import Status, save
from runtime.errors import sentence


def processes(container: Container) -> None:
    """Kill what is left in the container's cgroups, and remove them."""
    spec = records.read(f"{container.run_directory}/spec.json")
    if spec is not None:
        from runtime.oci.container import delete

        delete(spec)


def endpoint(container: Container) -> None:
    from runtime.engine.network import open_network

    open_network(container.config.network, f"{container.config.root}/network").detach(container.id)


def attempt(steps: list[Callable[[Container], None]], container: Container) -> str:
    """Do every step; what went wrong as one line, "" if nothing did."""
    troubles = []
    for step in steps:
        try:
            step(container)
        except Exception as error:  # one step's failure, of whatever kind, must not keep the rest from being released
            troubles.append(sentence(error))
    return "; ".join(troubles)


def discard(store: ContainerStore, container: Container, *, after_crash: bool = False) -> None:
    """Remove a container that holds nothing any more: its snapshot and its record. The lock must be held.

    The record goes last, as REMOVING: who dies here leaves a container whose removal recovery goes on with, and it
    lets the driver take back what may be half-made. On a full disk it stays as it is: the removal is what makes space.
    """
    from drivers.errors import NotFound
    from drivers.registry import open_driver

    with suppress(OSError):
        save(container.directory, container.state().to(Status.REMOVING))
        os.unlink(f"{container.run_directory}/state.json")
    driver = open_driver(container.config.driver, Paths(container.config.root, "").driver(container.config.driver))
    try:
        with suppress(NotFound):  # a crash between making the record and the snapshot, or after removing it
            driver.remove(container.id)
        if after_crash:
            driver.cleanup()
    finally:
        driver.close()
    store.drop(container)
