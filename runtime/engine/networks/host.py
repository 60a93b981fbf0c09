"""The network `host`: the host's own network namespace."""

from __future__ import annotations

from collections.abc import Collection

from runtime.engine.networks import files
from runtime.engine.networks.network import Endpoint


class HostNetwork:
    """The host's own network namespace: its addresses, its ports, its files."""

    name = "host"

    def __init__(self, root: str) -> None:
        """Nothing is kept below `root`."""

    def attach(self, pid: int, container_id: str) -> Endpoint | None:
        return None

    def detach(self, container_id: str) -> None:
        """Nothing was attached."""

    def cleanup(self, live_ids: Collection[str]) -> None:
        """Nothing was attached."""

    def resolv(self) -> str:
        return files.read(files.HOST_RESOLV)

    def hosts(self, hostname: str, endpoint: Endpoint | None) -> str:
        return files.read(files.HOST_HOSTS) or files.hosts(hostname)
