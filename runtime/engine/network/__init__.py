"""Networks of containers, in libnetwork's words: a container's network namespace is a Sandbox; an Endpoint is its place
on a Network, of which there are three: `bridge`, `none` and `host`.

    netlink      messages and the socket          rtnetlink   links, addresses, routes as messages
    sandbox      inside the container's namespace leases      addresses, in sqlite
    subnets      which subnet is free             forwarding  the host's ip_forward switch
    nat          the nft table                    iptables    the same without nft, run by command
    bridge       all of these in their order      model       Network, Endpoint, and the bridgeless two
    files        resolv.conf, hosts, hostname     host        the lock, and the host's links

The state of a bridge is the kernel's: what exists, and the bridge's alias. Only leases are on disk. One lock per host
network namespace orders every change to it, whatever the root (host.py).
"""

from __future__ import annotations

from runtime.engine.network.model import Endpoint, HostNetwork, Network, NoneNetwork
from runtime.errors import NetworkError

NAMES = ("bridge", "none", "host")

__all__ = ["NAMES", "Endpoint", "HostNetwork", "Network", "NoneNetwork", "open_network"]


def open_network(name: str, root: str) -> Network:
    """The network called `name`; `root` is the directory of its leases. NetworkError when there is none."""
    if name == "bridge":
        from runtime.engine.network.bridge import BridgeNetwork

        return BridgeNetwork(root)
    if name == "none":
        return NoneNetwork()
    if name == "host":
        return HostNetwork()
    raise NetworkError(f"no such network: {name} (there are {', '.join(NAMES)})")
