"""A fresh host for each test that asks, with boxes on it and, if it asks for that, a machine outside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import NamedTuple

import pytest

from runtime.engine.networks import rtnetlink
from runtime.engine.networks.bridge import BridgeNetwork
from runtime.engine.networks.netlink import NetlinkSocket
from tests.runtime.engine.networks.netns import Box, fresh_host, links, nft, sysctl

HOST = "198.51.100.1"
OUTSIDE = "198.51.100.2"


@pytest.fixture
def host() -> Iterator[None]:
    with fresh_host():
        yield


@pytest.fixture
def box(host: None) -> Iterator[Callable[[], Box]]:
    """Make boxes; they are killed when the test ends."""
    boxes: list[Box] = []

    def make() -> Box:
        boxes.append(Box())
        return boxes[-1]

    yield make
    for made in boxes:
        made.kill()


@pytest.fixture
def outside(box: Callable[[], Box]) -> Box:
    """A machine that the host reaches by a veth and its default route, and that knows no way to any container."""
    machine = box()
    with NetlinkSocket() as netlink:
        peer = rtnetlink.Peer("eth0", "02:00:00:00:00:02", machine.netns)
        netlink.request(rtnetlink.create_veth("uplink", peer, master=0, mtu=1400, group=0))
        (uplink,) = rtnetlink.links(netlink.request(rtnetlink.get_link("uplink")))
        far = machine.inside(NetlinkSocket)
        with far:
            (eth0,) = rtnetlink.links(far.request(rtnetlink.get_link("eth0")))
            far.request(
                rtnetlink.set_link(eth0.number, up=True),
                rtnetlink.add_address(eth0.number, IPv4Interface(f"{OUTSIDE}/24")),
            )
        netlink.request(
            rtnetlink.add_address(uplink.number, IPv4Interface(f"{HOST}/24")),
            rtnetlink.add_default_route(uplink.number, IPv4Address(OUTSIDE)),
        )
    return machine


class Trace(NamedTuple):
    """All that a network can leave on a host."""

    links: frozenset[str]
    rules: str
    forwarding: str


@pytest.fixture
def trace() -> Callable[[], Trace]:
    return lambda: Trace(frozenset(links()), nft("list", "ruleset"), sysctl("ipv4/ip_forward"))


@pytest.fixture
def bridge(host: None, tmp_path: Path) -> BridgeNetwork:
    return BridgeNetwork(os.path.join(tmp_path, "network"))
