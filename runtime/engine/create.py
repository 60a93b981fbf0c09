"""From an image's name and options to a container that a shim can start."""

from __future__ import annotations

import os
import socket
import time
from functools import partial
from typing import Any, NamedTuple

from drivers.mounts import Mount
from runtime.engine import names, release, spec
from runtime.engine.containers import Config, Container, ContainerStore
from runtime.engine.network import open_network
from runtime.engine.options import RunOptions
from runtime.engine.paths import Paths
from runtime.engine.state import State, Status
from runtime.engine.storage import Storage
from runtime.errors import NoSuchImage, step
from runtime.images.image import Image
from runtime.images.store import ImageStore
from runtime.images.unpack import unpack
from runtime.oci.spec import parse

# Of an image's configuration, what nothing here acts upon.
_DECLARED = ("Labels", "ExposedPorts", "Volumes", "Healthcheck")


class Created(NamedTuple):
    container: Container
    lock: int  # held; to be handed to a shim or closed
    mounts: list[Mount]

    def leave(self) -> None:
        """Put it at rest, durably, for another process to start. OSError."""
        try:
            self.container.rest(State(Status.CREATED))
        finally:
            os.close(self.lock)


def create(store: ContainerStore, storage: Storage, options: RunOptions) -> Created:
    """Record the container and prepare its root file system on the image, unpacked for this driver when needed.

    Raises RuntimeFault, DriverError or OSError; the container is not there then.
    """
    paths = store.paths
    images = ImageStore(paths.images)
    with step(f"find the image {options.image}"):
        image = _image(images, storage, paths, options)
    open_network(options.network, f"{paths.root}/network")
    with step(f"open the storage driver {storage.driver}"):
        driver = storage.open(paths)
    try:
        config = configure(store, storage.driver, options, image.id, image.config)
        with step(f"unpack the image {options.image}"):
            parent = unpack(images, image, driver)
        with step("record the container"):
            container, lock = store.add(config._replace(parent=parent))
        try:
            with step("prepare its root file system"):
                images.confirm(image)  # who removes images looks at the containers that are recorded
                mounts = driver.prepare(container.id, parent, quota=options.quota, volatile=options.remove)
        except BaseException:
            # Whatever comes of that, what the user is to hear of is why there is no container; recovery tries again.
            release.attempt([partial(release.discard, store)], container)
            os.close(lock)
            raise
    finally:
        driver.close()
    return Created(container, lock, mounts)


def _image(images: ImageStore, storage: Storage, paths: Paths, options: RunOptions) -> Image:
    """The image, pulled first where it is missing, or `--pull` says so."""
    missing: NoSuchImage | None = None
    if options.pull != "always":
        try:
            return images.get(options.image)
        except NoSuchImage as error:
            if options.pull == "never":
                raise
            missing = error

    from runtime.registry.obtain import obtain  # only here: a registry is not what most runs need

    return obtain(images, options.image, lambda: storage.open(paths), missing=missing)


def configure(
    store: ContainerStore, driver_name: str, options: RunOptions, image_id: str, image: dict[str, Any]
) -> Config:
    """The container's configuration, complete but for a made-up name and the parent snapshot."""
    container_id = names.new_id()
    run_directory = f"{store.paths.running}/{container_id}"
    hostname = options.hostname or (
        socket.gethostname() if options.network == "host" else container_id[: names.SHORT_ID]
    )
    built = spec.build(
        container_id, options, image, rootfs=f"{run_directory}/rootfs", hostname=hostname
    )
    parse(built)  # ConfigError now, and not when half of it is made
    return Config(
        id=container_id, name=options.name, image=options.image, image_id=image_id, driver=driver_name, parent="",
        command=tuple(built["process"]["args"]), created=time.time(), network=options.network, remove=options.remove,
        terminal=options.terminal, stdin=options.stdin, user=options.user or str(image.get("User") or ""),
        root=store.paths.root, state=store.paths.state,
        stop_signal=names.signal_number(str(image.get("StopSignal") or "SIGTERM")), spec=built,
        entrypoint=tuple(image.get("Entrypoint") or ()), quota=options.quota,
        declared={key: image[key] for key in _DECLARED if image.get(key)},
    )  # fmt: skip
