"""Requests against bytes written down here, and both directions against the kernel."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from runtime.engine.networks import rtnetlink
from runtime.engine.networks.netlink import NetlinkSocket
from tests.runtime.engine.networks.netns import Box, links, routes


def test_create_veth() -> None:
    request = rtnetlink.create_veth(
        "aufs0v2", rtnetlink.Peer("eth0", "02:42:ac:1e:00:02", 9), master=5, mtu=1500, group=3
    )
    assert (request.type, request.flags) == (16, 0x600)  # RTM_NEWLINK, CREATE | EXCL
    assert request.body == bytes.fromhex(
        "00 00 0000 00000000 01000000 01000000"  # ifinfomsg: IFF_UP, and change just that
        "0c00 0300 6175667330763200"  # IFLA_IFNAME aufs0v2
        "0800 0400 dc050000"  # IFLA_MTU
        "0800 0a00 05000000"  # IFLA_MASTER
        "0800 1b00 03000000"  # IFLA_GROUP
        "5000 1280"  # IFLA_LINKINFO
            "0900 0100 7665746800 000000"  # IFLA_INFO_KIND veth
            "4000 0280"  # IFLA_INFO_DATA
                "3c00 0180"  # VETH_INFO_PEER
                    "00 00 0000 00000000 00000000 00000000"  # ifinfomsg: down
                    "0900 0300 6574683000 000000"  # IFLA_IFNAME eth0
                    "0a00 0100 0242ac1e0002 0000"  # IFLA_ADDRESS
                    "0800 0400 dc050000"  # IFLA_MTU
                    "0800 1c00 09000000"  # IFLA_NET_NS_FD
    )  # fmt: skip


def test_add_address() -> None:
    request = rtnetlink.add_address(3, IPv4Interface("172.30.0.2/16"))
    assert (request.type, request.flags) == (20, 0x600)
    assert request.body == bytes.fromhex(
        "02 10 00 00 03000000"  # AF_INET, /16, universe, link 3
        "0800 0200 ac1e0002"  # IFA_LOCAL
        "0800 0100 ac1e0002"  # IFA_ADDRESS
        "0800 0400 ac1effff"  # IFA_BROADCAST
    )  # fmt: skip


def test_add_default_route() -> None:
    request = rtnetlink.add_default_route(3, IPv4Address("172.30.0.1"))
    assert (request.type, request.flags) == (24, 0x600)
    assert request.body == bytes.fromhex(
        "02 00 00 00 fe 03 00 01 00000000"  # AF_INET, /0, table main, boot, universe, unicast
        "0800 0500 ac1e0001"  # RTA_GATEWAY
        "0800 0400 03000000"  # RTA_OIF
    )  # fmt: skip


@pytest.mark.needs("netns")
def test_what_is_made_reads_back(host: None, box: Callable[[], Box]) -> None:
    container = box()
    with NetlinkSocket() as netlink:
        netlink.request(rtnetlink.create_bridge("br", mac="02:42:0a:00:00:01", mtu=1300, group=6))
        bridge = links()["br"]
        assert bridge == (bridge.number, "br", False, "bridge", "", 0, 1300, "02:42:0a:00:00:01", 6)
        netlink.request(
            rtnetlink.set_link(bridge.number, up=True),
            rtnetlink.set_link(bridge.number, alias="ünïcode"),
            rtnetlink.add_address(bridge.number, IPv4Interface("10.0.0.1/24")),
        )
        assert links()["br"] == bridge._replace(up=True, alias="ünïcode")
        assert list(rtnetlink.addresses(netlink.dump(rtnetlink.dump_addresses(bridge.number)))) == [
            (bridge.number, IPv4Interface("10.0.0.1/24"))
        ]
        loopback = netlink.dump(rtnetlink.dump_addresses(1))
        assert list(rtnetlink.addresses(loopback)) == [(1, IPv4Interface("127.0.0.1/8"))]
        netlink.request(rtnetlink.add_default_route(bridge.number, IPv4Address("10.0.0.9")))
        found = list(rtnetlink.routes(netlink.dump(rtnetlink.dump_routes())))
        assert rtnetlink.Route(IPv4Network("0.0.0.0/0"), bridge.number) in found
        assert rtnetlink.Route(IPv4Network("10.0.0.1/32"), bridge.number) in found  # of the table `local`
        assert routes() >= {"0.0.0.0/0", "10.0.0.0/24", "10.0.0.1/32", "127.0.0.0/8"}

        peer = rtnetlink.Peer("eth0", "02:42:0a:00:00:02", container.netns)
        netlink.request(rtnetlink.create_veth("port", peer, master=bridge.number, mtu=1300, group=6))
        assert links()["port"][2:7] == (True, "veth", "", bridge.number, 1300)
        far = container.links()["eth0"]
        assert far[2:] == (False, "veth", "", 0, 1300, "02:42:0a:00:00:02", 0)
        netlink.request(rtnetlink.delete_group(6))
        assert set(links()) == {"lo"} and set(container.links()) == {"lo"}
