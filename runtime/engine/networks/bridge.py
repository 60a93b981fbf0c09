"""BridgeNetwork: containers on a bridge of the host's, masqueraded behind it.

    host netns                                          sandbox
      eth0 ─ masquerade ─ aufs0 172.30.0.1/16 ─ aufs0v2 ┄┄ eth0 172.30.0.2/16, default via 172.30.0.1

The first endpoint makes the bridge, the last takes it away. Attaching goes lease, link, sandbox; detaching link,
lease: at every moment what exists has a lease, and `cleanup` finds the leases whose container is gone. Both are done
under the host's lock (links.py), so an endpoint that comes never meets a bridge that goes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv4Network

from runtime.engine.networks import files
from runtime.engine.networks.leases import Leases
from runtime.engine.networks.links import Host, locked, mac_of, step
from runtime.engine.networks.network import Endpoint
from runtime.engine.networks.rtnetlink import Peer
from runtime.engine.networks.sandbox import INTERFACE, Sandbox
from runtime.errors import NetworkError

_BRIDGES = 64  # roots that may share a host


class BridgeNetwork:
    """The bridge of the directory `root`, where its leases are kept.

    `bridge` and `subnet` are what it gets unless another root, or a route of the host's, has them already.
    """

    name = "bridge"

    def __init__(self, root: str, *, bridge: str = "aufs0", subnet: str = "172.30.0.0/16") -> None:
        self._root = os.path.realpath(root)
        self._bridge = bridge
        self._subnet = IPv4Network(subnet)

    def attach(self, pid: int, container_id: str) -> Endpoint:
        with Sandbox(pid) as sandbox, self._session() as (host, leases):
            try:
                return self._connect(sandbox, pid, container_id, host, leases)
            except BaseException:
                self._leave(container_id, host, leases)
                raise

    def detach(self, container_id: str) -> None:
        if os.path.exists(self._database):
            with self._session() as (host, leases):
                self._leave(container_id, host, leases)

    def cleanup(self, live_ids: Collection[str]) -> None:
        if not os.path.exists(self._database):
            return
        with self._session() as (host, leases):
            for container in leases.stale(live_ids):
                self._leave(container, host, leases)
            if not leases.all():
                self._dismantle(host, leases)

    def resolv(self) -> str:
        return files.resolv()

    def hosts(self, hostname: str, endpoint: Endpoint | None) -> str:
        return files.hosts(hostname, endpoint.address if endpoint else "")

    @property
    def _database(self) -> str:
        return os.path.join(self._root, "leases.sqlite")

    @contextmanager
    def _session(self) -> Iterator[tuple[Host, Leases]]:
        try:
            with step(f"use the network directory {self._root}"):
                os.makedirs(self._root, mode=0o700, exist_ok=True)
            with step("change the host's network"), locked():
                with Leases(self._database) as leases, Host(self._root) as host:
                    yield host, leases
        except sqlite3.Error as error:
            raise NetworkError(f"cannot use the leases in {self._database}: {error}") from error

    def _connect(self, sandbox: Sandbox, pid: int, container_id: str, host: Host, leases: Leases) -> Endpoint:
        name, found = host.find(self._names(leases.bridge))
        if leases.bridge != name:
            leases.bridge = name  # before it is made: `cleanup` looks for what a killed process began
        bridge = found or host.make(name, self._subnet)
        host.serve(bridge)
        gateway = host.address(bridge)
        subnet = gateway.network
        lease = leases.acquire(container_id, subnet, bridge=bridge.name, pid=pid, netns=sandbox.inode)
        mac = mac_of(lease.address)
        host.add_port(bridge, lease.port, Peer(INTERFACE, mac, sandbox.fd))
        with step(f"configure {INTERFACE} in the container"):
            sandbox.configure(IPv4Interface((lease.address, subnet.prefixlen)), gateway.ip)
        return Endpoint(str(lease.address), subnet.prefixlen, str(gateway.ip), mac, lease.port)

    def _leave(self, container_id: str, host: Host, leases: Leases) -> None:
        """Links first: if we are killed here a lease is left, and with it a second try."""
        lease = leases.get(container_id)
        if not leases.others(container_id):
            self._dismantle(host, leases)
        elif lease and host.owned(leases.bridge):
            host.delete_link(lease.port)
        leases.release(container_id)

    def _dismantle(self, host: Host, leases: Leases) -> None:
        bridge = host.owned(leases.bridge)  # after a reboot the name may be another root's
        if bridge:
            with step(f"take the bridge {bridge.name} away"):
                host.dismantle(bridge)

    def _names(self, former: str) -> Iterator[str]:
        """Where to look for our bridge, or for a free name: first where it was last."""
        if former:
            yield former
        yield self._bridge
        stem = self._bridge.rstrip("0123456789")
        yield from (f"{stem}{number}" for number in range(_BRIDGES))
