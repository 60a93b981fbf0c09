"""From a request to a container that a task can start."""

from __future__ import annotations

import os
import socket
import time
from functools import partial
from typing import Any, NamedTuple

from drivers.api import Mount
from runtime.engine.containers import names, release, spec
from runtime.engine.containers.container import Config, Container
from runtime.engine.containers.request import CreateRequest
from runtime.engine.installation import Installation
from runtime.engine.state import State, Status
from runtime.errors import NoSuchImage, step
from runtime.events import Listener, unheard
from runtime.images.image import Image
from runtime.images.unpack import unpack
from runtime.oci.spec import parse

# The parts of an image's configuration that nothing here acts upon.
_DECLARED = ("Labels", "ExposedPorts", "Volumes", "Healthcheck")


class Created(NamedTuple):
    container: Container
    lock: int  # held; to be handed to a task or closed
    mounts: list[Mount]

    def leave(self) -> None:
        """Put it at rest, durably, for another process to start. OSError."""
        try:
            self.container.rest(State(Status.CREATED))
        finally:
            os.close(self.lock)


def create(installation: Installation, request: CreateRequest, tell: Listener = unheard) -> Created:
    """Record the container and prepare its root file system on the image, unpacked for this driver when needed.
    `tell` hears how it is pulled, if it is.

    Raises RuntimeFault, DriverError or OSError; the container is not there then.
    """
    request.check()
    images, drivers = installation.images, installation.drivers
    with step(f"find the image {request.image}"):
        image = _image(installation, request, tell)
    installation.network(request.network)
    with step(f"open the storage driver {drivers.storage.driver}"):
        driver = drivers.chosen()
    config = configure(drivers.storage.driver, request, image.id, image.config)
    with step(f"unpack the image {request.image}"):
        parent = unpack(images, image, driver)
    with step("record the container"):
        container, lock = installation.containers.add(config._replace(parent=parent))
    try:
        with step("prepare its root file system"):
            images.confirm(image)  # whoever removes images looks at the containers that are recorded
            mounts = driver.prepare(container.id, parent, quota=request.quota, volatile=request.remove)
    except BaseException:
        # Whatever comes of that, the user is to hear why there is no container; recovery tries again.
        release.attempt([partial(release.discard, installation)], container)
        os.close(lock)
        raise
    return Created(container, lock, mounts)


def _image(installation: Installation, request: CreateRequest, tell: Listener) -> Image:
    """The image, pulled first where it is missing, or `--pull` says so."""
    missing: NoSuchImage | None = None
    if request.pull != "always":
        try:
            return installation.images.get(request.image)
        except NoSuchImage as error:
            if request.pull == "never":
                raise
            missing = error

    from runtime.registry.obtain import obtain  # only here: a registry is not what most runs need

    return obtain(installation.images, request.image, installation.drivers.chosen, tell, missing=missing)


def configure(driver_name: str, request: CreateRequest, image_id: str, image: dict[str, Any]) -> Config:
    """The container's configuration, complete but for a made-up name and the parent snapshot."""
    container_id = names.new_id()
    hostname = request.hostname or (
        socket.gethostname() if request.network == "host" else container_id[: names.SHORT_ID]
    )
    built = spec.build(container_id, request, image, hostname=hostname)
    parse({**built, "root": {"path": "/"}})  # ConfigError now, and not when half of it is made
    return Config(
        id=container_id, name=request.name, image=request.image, image_id=image_id, driver=driver_name, parent="",
        command=tuple(built["process"]["args"]), created=time.time(), network=request.network, remove=request.remove,
        terminal=request.terminal, stdin=request.stdin, user=request.user or str(image.get("User") or ""),
        stop_signal=names.signal_number(str(image.get("StopSignal") or "SIGTERM")), spec=built,
        entrypoint=tuple(image.get("Entrypoint") or ()), quota=request.quota,
        declared={key: image[key] for key in _DECLARED if image.get(key)},
    )  # fmt: skip
