"""What every kind of network is to a container."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol


class Endpoint(NamedTuple):
    """A container's place on a network."""

    address: str
    prefix: int
    gateway: str
    mac: str
    host_link: str


class Network(Protocol):
    """One per process that needs it; holds nothing between calls. Everything raises NetworkError."""

    @property
    def name(self) -> str: ...

    def attach(self, pid: int, container_id: str) -> Endpoint | None:
        """Connect the network namespace of process `pid`, once. None when there is no address to speak of.

        Attached again after its process was killed, a container keeps the address that it had.
        """

    def detach(self, container_id: str) -> None:
        """Take back what `attach` gave, dead or alive. A container that is not attached is fine."""

    def cleanup(self, live_ids: Collection[str]) -> None:
        """Detach every container that is neither in `live_ids` nor still running: what a kill -9 left attached."""

    def resolv(self) -> str:
        """The container's resolv.conf."""

    def hosts(self, hostname: str, endpoint: Endpoint | None) -> str:
        """The container's hosts file."""
