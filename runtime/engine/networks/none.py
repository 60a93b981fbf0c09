"""The network `none`: a network namespace with only its loopback."""

from __future__ import annotations

from collections.abc import Collection

from runtime.engine.networks import files
from runtime.engine.networks.network import Endpoint


class NoneNetwork:
    """Nothing but the loopback. It keeps nothing on disk."""

    name = "none"

    def __init__(self, root: str) -> None:
        """Nothing is kept below `root`."""

    def attach(self, pid: int, container_id: str) -> Endpoint | None:
        """Nothing to add: a new namespace's loopback is brought up with it (oci/child.py)."""
        return None

    def detach(self, container_id: str) -> None:
        """Nothing is outside the namespace."""

    def cleanup(self, live_ids: Collection[str]) -> None:
        """Nothing is outside the namespaces."""

    def resolv(self) -> str:
        return files.resolv()

    def hosts(self, hostname: str, endpoint: Endpoint | None) -> str:
        return files.hosts(hostname)
