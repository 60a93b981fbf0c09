"""Networks of containers, in libnetwork's words: a container's network namespace is a Sandbox; an Endpoint is its place
on a Network, of which there are three: `bridge`, `none` and `host`.

    netlink   messages and the socket              rtnetlink  links, addresses and routes as messages
    sandbox   inside the container's namespace     leases     who has which address, in sqlite
    subnets   which subnet is free                 sysctl     forwarding, and no IPv6
    nat       the packet filter, by nft            iptables   the same without nft; both run by command
    host      the lock, and the host's links       files      resolv.conf, hosts, hostname
    bridge    all of these in their order          model      Network, Endpoint, and the two without a bridge

The state of a bridge is the kernel's: what exists, and the bridge's alias. Only leases are on disk. One lock per host
network namespace orders every change to it, whatever the root (host.py).
"""

from __future__ import annotations

from runtime.engine.networks.model import Endpoint, HostNetwork, Network, NoneNetwork
from runtime.errors import NetworkError

NAMES = ("bridge", "none", "host")

__all__ = ["NAMES", "Endpoint", "HostNetwork", "Network", "NoneNetwork", "open_network"]


def open_network(name: str, root: str) -> Network:
    """The network called `name`; `root` is the directory of its leases. NetworkError when there is none."""
    if name == "bridge":
        from runtime.engine.networks.bridge import BridgeNetwork

        return BridgeNetwork(root)
    if name == "none":
        return NoneNetwork()
    if name == "host":
        return HostNetwork()
    raise NetworkError(f"no such network: {name} (there are {', '.join(NAMES)})")
