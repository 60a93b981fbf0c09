"""Removing what nobody uses: containers that have ended, images without a name, what killed pulls left."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from drivers.errors import DriverError
from drivers.registry import open_driver
from runtime.engine import leftovers, rmi, stores
from runtime.engine.containers import ContainerStore
from runtime.engine.state import AT_REST
from runtime.engine.stop import remove
from runtime.engine.stores import Away
from runtime.errors import ImageInUse, NoSuchContainer, NoSuchImage, RuntimeFault, StateError
from runtime.images.store import ImageStore


class Pruned(NamedTuple):
    """Ids of containers or names and ids of images, as lines to show; the bytes that went with them; why what could
    not be removed was not, which is no reason to keep the rest, nor to be silent about it; and drivers that could not
    be asked."""

    lines: list[str]
    freed: int
    failures: list[Exception]
    away: list[Away]


def containers(store: ContainerStore) -> Pruned:
    """Remove the containers that have ended, or never ran; none that somebody else works on, or that is damaged."""
    pruned = Pruned([], 0, [], [])
    for container in store:
        try:
            if container.state().status not in AT_REST:
                continue
            size = _written(store, container.config.driver, container.id)
            remove(store, container, force=False, tell=pruned.away.append)
            pruned = pruned._replace(lines=[*pruned.lines, container.id], freed=pruned.freed + size)
        except (NoSuchContainer, StateError):
            continue
        except (DriverError, OSError, RuntimeFault) as error:
            pruned.failures.append(error)
    return pruned


def left_over(store: ContainerStore) -> Pruned:
    """Take back what killed processes have left in the drivers. There is nothing to name: nobody has asked for it."""
    return Pruned([], *leftovers.take_back(store))


def _written(store: ContainerStore, name: str, container_id: str) -> int:
    """0 as well for what is damaged: to remove that is right."""
    try:
        driver = open_driver(name, store.paths.driver(name))
    except DriverError:
        return 0
    try:
        return stores.written(driver, container_id)
    finally:
        driver.close()


def snapshots(store: ContainerStore) -> Pruned:
    """Remove the snapshots of containers that have no record."""
    pruned = Pruned([], 0, [], [])
    for snapshot in stores.ownerless(store.paths, pruned.away):
        try:
            stores.remove(store.paths, snapshot.key)
            line = f"{snapshot.driver}: {snapshot.key}"
            pruned = pruned._replace(lines=[*pruned.lines, line], freed=pruned.freed + snapshot.size)
        except (DriverError, OSError) as error:
            pruned.failures.append(error)
    return pruned


def images(store: ContainerStore, *, named: bool = False) -> Pruned:
    """Remove the images that no container is made of: those without a tag, or `named` ones too; and what killed pulls
    left of others."""
    kept = ImageStore(store.paths.images)
    used = rmi.in_use(store)
    before = sum(kept.blob_sizes().values())
    lines: list[str] = []
    for image in kept.list():
        if image.id in used or (image.tags and not named):
            continue
        # By its manifest, what digests of other repositories still hold; its id may be another's that has a tag.
        for name in (*image.tags, image.manifest):
            with suppress(NoSuchImage, ImageInUse):
                removed = kept.remove(name, in_use=lambda: rmi.in_use(store))
                lines += [*(f"untagged: {one}" for one in removed.untagged)]
                lines += [*(f"deleted: {one}" for one in removed.deleted)]
    freed = before - sum(kept.blob_sizes().values())
    forgotten, failures, away = leftovers.take_back(store)
    return Pruned(lines, freed + forgotten + kept.prune_incoming(), failures, away)
