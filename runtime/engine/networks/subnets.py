"""Which subnet a new bridge gets: the wished one, or the next that nothing on the host reaches already. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network

from runtime.errors import NetworkError

# A VPN that takes all traffic installs 0.0.0.0/1 and 128.0.0.0/1: default routes, not neighbours.
_SHORTEST = 2


def choose(wished: IPv4Network, reached: Iterable[IPv4Network]) -> IPv4Network:
    """The first candidate that overlaps none of `reached`, default routes aside. NetworkError if there is none."""
    near = [network for network in reached if network.prefixlen >= _SHORTEST]
    for candidate in _candidates(wished):
        if not any(candidate.overlaps(network) for network in near):
            return candidate
    raise NetworkError(f"the host has routes into {wished} and every other private subnet: use --network none or host")


def _candidates(wished: IPv4Network) -> Iterator[IPv4Network]:
    """RFC 1918, the ranges that fewest sites use first."""
    yield wished
    for second in range(31, 15, -1):
        yield IPv4Network(f"172.{second}.0.0/16")
    for second in range(255, 199, -1):
        yield IPv4Network(f"10.{second}.0.0/16")
    for third in range(240, -1, -16):
        yield IPv4Network(f"192.168.{third}.0/20")
