"""Taking back what a running container holds: processes, cgroups, its endpoint, and last its record.

Its root file system is not among it: that ends with its processes and its task (engine/task).

Every step is idempotent and works even if the steps before it never happened, so the task at the end of a container and
recovery after a killed task take the same path. A step that fails does not stop the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from drivers.errors import DriverError, NotFound
from runtime.engine.containers.container import Container
from runtime.engine.installation import Installation
from runtime.errors import RuntimeFault, sentence, step

if TYPE_CHECKING:
    from drivers.api import Snapshotter
    from runtime.engine.storage.drivers import Away
    from runtime.oci.cgroups import Cgroup


def processes(container: Container) -> None:
    """Kill what is left in the container's cgroups, and remove them. Raises RuntimeFault when something goes on."""
    if not os.path.isdir(container.run_directory):
        return
    from runtime.oci.container import delete

    with step("end its processes"):
        if not delete(container.run_directory):
            # An earlier version's, or a damaged one: its cgroups are known by its configuration too.
            with suppress(KeyError):
                cgroup = _cgroup(container)
                cgroup.kill()
                cgroup.remove()


def oom_killed(container: Container) -> bool:
    """Whether the kernel has killed one of its processes for its memory limit: its cgroups tell, until they go."""
    with suppress(OSError, KeyError):
        return _cgroup(container).oom_kills() > 0
    return False


def _cgroup(container: Container) -> Cgroup:
    """As its configuration names it. KeyError: a damaged one has no specification."""
    from runtime.oci.cgroups import Cgroup

    return Cgroup(container.config.spec["linux"]["cgroupsPath"])


def endpoint(installation: Installation, container: Container) -> None:
    with step(f"take it off the network {container.config.network}"):
        installation.network(container.config.network).detach(container.id)


def leases(installation: Installation) -> None:
    """Detach the endpoints of containers that are not up any more, or are gone."""
    with suppress(RuntimeFault, OSError):
        installation.network("bridge").cleanup(())


def attempt(steps: list[Callable[[Container], None]], container: Container) -> str:
    """Do every step; what went wrong as one line, "" if nothing did."""
    troubles = []
    for take_back in steps:
        try:
            take_back(container)
        except Exception as error:  # one step's failure, of whatever kind, must not keep the rest from being released
            troubles.append(sentence(error))
    return "; ".join(troubles)


def discard(installation: Installation, container: Container, *, after_crash: bool = False) -> None:
    """Remove a container that holds nothing any more: its snapshot and its record. The lock must be held.

    The record goes last, as REMOVING: whoever dies here leaves a container whose removal recovery goes on with
    (`after_crash`), and it lets the driver take back what may be half-made. Whoever fails here says so, and leaves the
    container as it was: it is not removed later behind anybody's back.
    """
    driver = installation.drivers.get(container.config.driver)
    trouble: Exception | None = None
    container.begin_removal()
    try:
        container.clear()
        driver.remove(container.id)
    except NotFound:
        pass  # a crash between making the record and the snapshot, or after removing it
    except BaseException as error:
        if _has(driver, container.id):
            if not after_crash:
                container.give_removal_up()
            raise
        if not isinstance(error, Exception):
            raise  # we are to end; recovery forgets the record
        trouble = error  # of deleting what is nobody's any more
    if after_crash:
        with suppress(DriverError, OSError):  # what is left of others is no reason to keep this one
            driver.cleanup()
    installation.containers.drop(container)
    if trouble is not None:
        raise RuntimeFault(
            f"{container.config.name} is removed, but not all of what it has written: {sentence(trouble)}; "
            "`runtime system prune` tries again"
        ) from trouble


def discard_damaged(installation: Installation, container: Container) -> list[Away]:
    """discard() of a container whose record does not say what it holds: it is looked for, in all drivers but those
    returned, which do not work now."""
    def leave_network(container: Container) -> None:
        installation.network("bridge").detach(container.id)

    processes(container)
    attempt([leave_network], container)
    container.begin_removal()
    try:
        away = installation.drivers.remove(container.id)
    except BaseException:
        container.give_removal_up()
        raise
    installation.containers.drop(container)
    return away


def _has(driver: Snapshotter, key: str) -> bool:
    try:
        driver.stat(key)
    except NotFound:
        return False
    except (DriverError, OSError):
        pass
    return True
