"""One installation: the one owner of where it lies, its images, its storage drivers, its containers and its networks.

A process makes it once and hands it, or the part that is needed, to all that works on it. Nothing is opened before it
is wanted, so that a command pays for what it uses and for nothing else; what was opened is opened once, and closed with
the installation by whoever made that. Whoever goes on for long after that, as the client of a container does, closes it
before: a driver that is open may hold a pool, or a loop device, which others would like to see gone.

Threads may share it. Processes may not: one that is forked makes its own (drivers/graph/store.py, fork).
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from runtime.engine.paths import DEFAULT_DRIVER, Paths
from runtime.engine.storage.drivers import Drivers, Storage

if TYPE_CHECKING:
    from runtime.engine.containers.store import ContainerStore
    from runtime.engine.networks.network import Network
    from runtime.images.store import ImageStore

_Part = TypeVar("_Part")


class Installation:
    """`storage` is the driver that new containers are made on. A context manager that closes what was opened."""

    def __init__(self, paths: Paths, storage: Storage | None = None) -> None:
        self.paths = paths
        self.drivers = Drivers(paths, storage or Storage(DEFAULT_DRIVER, {}))
        # Of two threads that want a part at once each may make it, and the first one's is kept: dict.setdefault() is
        # atomic. A lock would have a thread wait for what another one opens.
        self._parts: dict[str, Any] = {}

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened. It can be used on, and opens again what is wanted then; twice is fine."""
        self.drivers.close()
        if images := self._parts.get("images"):
            images.close()

    @property
    def containers(self) -> ContainerStore:
        """The containers, with their directories made. Raises OSError, DriverError (Paths.keep_private)."""

        def make() -> ContainerStore:
            from runtime.engine.containers.store import ContainerStore

            return ContainerStore(self.paths)

        return self._part("containers", make)

    @property
    def images(self) -> ImageStore:
        """The image store. Raises ImageError, OSError."""

        def make() -> ImageStore:
            from runtime.images.store import ImageStore

            return ImageStore(self.paths.images)

        return self._part("images", make)

    def network(self, name: str) -> Network:
        """The network `name`. NetworkError when there is none."""

        def make() -> Network:
            from runtime.engine.networks.table import open_network

            return open_network(name, self.paths.network)

        return self._part(f"network {name}", make)

    def _part(self, name: str, make: Callable[[], _Part]) -> _Part:
        found = self._parts.get(name)
        return cast(_Part, self._parts.setdefault(name, make()) if found is None else found)
