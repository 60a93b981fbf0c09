"""Containers on a bridge: whom they reach, as whom, and what is left when they go."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from runtime.engine.networks import rtnetlink
from runtime.engine.networks.bridge import BridgeNetwork
from runtime.engine.networks.netlink import NetlinkSocket
from runtime.errors import NetworkError
from tests.runtime.engine.networks.conftest import HOST, OUTSIDE, Trace
from tests.runtime.engine.networks.netns import Box, fresh_host, links, nft, routes, sysctl, talk

pytestmark = pytest.mark.needs("netns", "program:nft")

MakeBox = Callable[[], Box]
TakeTrace = Callable[[], Trace]


def test_an_endpoint_has_an_address_a_mac_and_a_gateway(bridge: BridgeNetwork, box: MakeBox) -> None:
    container = box()
    endpoint = bridge.attach(container.pid, "one")
    assert endpoint == ("172.30.0.2", 16, "172.30.0.1", "02:42:ac:1e:00:02", "aufs0v2")
    inner = container.links()
    assert inner["lo"].up and inner["eth0"].up
    assert inner["eth0"].mac == endpoint.mac
    assert container.inside(routes) >= {"0.0.0.0/0", "172.30.0.0/16", "172.30.0.2/32"}
    assert links()["aufs0v2"].master == links()["aufs0"].number
    bridge.detach("one")


def test_the_world_sees_the_host(bridge: BridgeNetwork, box: MakeBox, outside: Box) -> None:
    container = box()
    bridge.attach(container.pid, "one")
    assert talk(container.open_socket(), outside.server(OUTSIDE), OUTSIDE) == HOST
    with container.open_socket(socket.SOCK_DGRAM) as client, outside.server(OUTSIDE, socket.SOCK_DGRAM) as server:
        client.sendto(b"ping", (OUTSIDE, 7))
        word, peer = server.recvfrom(16)
        assert (word, peer[0]) == (b"ping", HOST)
        server.sendto(b"pong", peer)
        assert client.recvfrom(16) == (b"pong", (OUTSIDE, 7))
    bridge.detach("one")


def test_containers_reach_each_other_and_the_gateway_as_themselves(bridge: BridgeNetwork, box: MakeBox) -> None:
    one, two = box(), box()
    first, second = bridge.attach(one.pid, "one"), bridge.attach(two.pid, "two")
    assert talk(one.open_socket(), two.server(second.address), second.address) == first.address
    listener = socket.socket()
    listener.settimeout(5)
    listener.bind((first.gateway, 7))
    listener.listen()
    assert talk(two.open_socket(), listener, first.gateway) == second.address
    bridge.detach("one")
    bridge.detach("two")


def test_nobody_outside_opens_a_connection_to_a_container(bridge: BridgeNetwork, box: MakeBox, outside: Box) -> None:
    container = box()
    endpoint = bridge.attach(container.pid, "one")
    with outside.inside(NetlinkSocket) as netlink:  # a neighbour who routes by the host on purpose
        (eth0,) = rtnetlink.links(netlink.request(rtnetlink.get_link("eth0")))
        netlink.request(rtnetlink.add_default_route(eth0.number, IPv4Address(HOST)))
    with container.server(endpoint.address) as server, outside.open_socket() as client:
        server.settimeout(0.3)
        client.setblocking(False)
        assert client.connect_ex((endpoint.address, 7)) != 0
        with pytest.raises(TimeoutError):
            server.accept()
    bridge.detach("one")


def test_a_container_speaks_only_as_itself(bridge: BridgeNetwork, box: MakeBox, outside: Box) -> None:
    container = box()
    bridge.attach(container.pid, "one")
    with container.inside(NetlinkSocket) as netlink:
        (eth0,) = rtnetlink.links(netlink.request(rtnetlink.get_link("eth0")))
        netlink.request(rtnetlink.add_address(eth0.number, IPv4Interface("203.0.113.9/32")))
    with container.open_socket(socket.SOCK_DGRAM) as client, outside.server(OUTSIDE, socket.SOCK_DGRAM) as server:
        client.bind(("203.0.113.9", 0))
        client.sendto(b"forged", (OUTSIDE, 7))
        with container.open_socket(socket.SOCK_DGRAM) as honest:
            honest.sendto(b"honest", (OUTSIDE, 7))
        assert server.recvfrom(16)[0] == b"honest"
    bridge.detach("one")


def test_no_ipv6_on_the_bridge(bridge: BridgeNetwork, box: MakeBox) -> None:
    container = box()
    bridge.attach(container.pid, "one")
    assert sysctl("ipv6/conf/aufs0/disable_ipv6") == "1"
    assert container.inside(lambda: sysctl("ipv6/conf/eth0/disable_ipv6")) == "1"
    bridge.detach("one")


def test_the_bridge_is_as_narrow_as_the_way_out(bridge: BridgeNetwork, box: MakeBox, outside: Box) -> None:
    container = box()
    bridge.attach(container.pid, "one")
    assert [links()[name].mtu for name in ("aufs0", "aufs0v2")] == [1400, 1400]
    assert container.links()["eth0"].mtu == 1400
    bridge.detach("one")


def test_the_last_endpoint_leaves_nothing(bridge: BridgeNetwork, box: MakeBox, trace: TakeTrace) -> None:
    before = trace()
    bridge.attach(box().pid, "one")
    bridge.attach(box().pid, "two")
    during = trace()
    assert during.forwarding == "1"
    bridge.detach("one")
    assert trace() == during._replace(links=during.links - {"aufs0v2"})
    bridge.detach("two")
    assert trace() == before


def test_forwarding_that_was_on_stays_on(bridge: BridgeNetwork, box: MakeBox, trace: TakeTrace) -> None:
    sysctl("ipv4/ip_forward", "1")
    before = trace()
    bridge.attach(box().pid, "one")
    bridge.detach("one")
    assert trace() == before


def test_what_we_made_the_host_forward_is_only_ours(bridge: BridgeNetwork, box: MakeBox, outside: Box) -> None:
    """Two neighbours of the host do not reach each other by it because a container runs."""
    third = box()
    with NetlinkSocket() as netlink:
        peer = rtnetlink.Peer("eth0", "02:00:00:00:00:03", third.netns)
        netlink.request(rtnetlink.create_veth("lan", peer, master=0, mtu=1500, group=0))
        netlink.request(rtnetlink.add_address(links()["lan"].number, IPv4Interface("203.0.113.1/24")))
    with third.inside(NetlinkSocket) as netlink:
        (eth0,) = rtnetlink.links(netlink.request(rtnetlink.get_link("eth0")))
        netlink.request(
            rtnetlink.set_link(eth0.number, up=True),
            rtnetlink.add_address(eth0.number, IPv4Interface("203.0.113.2/24")),
            rtnetlink.add_default_route(eth0.number, IPv4Address("203.0.113.1")),
        )
    bridge.attach(box().pid, "one")
    with third.open_socket(socket.SOCK_DGRAM) as client, outside.server(OUTSIDE, socket.SOCK_DGRAM) as server:
        server.settimeout(0.3)
        client.sendto(b"through", (OUTSIDE, 7))
        with pytest.raises(TimeoutError):
            server.recvfrom(16)
    bridge.detach("one")


def test_detach_is_idempotent(bridge: BridgeNetwork, box: MakeBox, trace: TakeTrace) -> None:
    before = trace()
    bridge.detach("never attached")
    bridge.attach(box().pid, "one")
    bridge.detach("one")
    bridge.detach("one")
    assert trace() == before


def test_a_container_that_died_is_detached(bridge: BridgeNetwork, box: MakeBox, trace: TakeTrace) -> None:
    before = trace()
    one, two = box(), box()
    bridge.attach(one.pid, "one")
    bridge.attach(two.pid, "two")
    one.kill()
    bridge.detach("one")
    two.kill()
    bridge.detach("two")
    assert trace() == before


def test_attached_again_it_keeps_its_address(bridge: BridgeNetwork, box: MakeBox) -> None:
    first = box()
    before = bridge.attach(first.pid, "one")
    bridge.attach(box().pid, "other")
    first.kill()
    container = box()
    assert bridge.attach(container.pid, "one") == before
    assert container.inside(routes) >= {f"{before.address}/32"}
    bridge.detach("one")
    bridge.detach("other")


def test_cleanup_detaches_the_dead_and_spares_the_running(
    bridge: BridgeNetwork, box: MakeBox, trace: TakeTrace
) -> None:
    before = trace()
    dead, listed, unlisted = box(), box(), box()
    for name, container in (("dead", dead), ("listed", listed), ("unlisted", unlisted)):
        bridge.attach(container.pid, name)
    dead.kill()
    listed.kill()
    bridge.cleanup(["listed"])
    assert {name for name in links() if "v" in name} >= {"aufs0v4"}
    assert "aufs0v2" not in links()
    unlisted.kill()
    bridge.cleanup([])
    assert trace() == before


def test_the_pool_runs_out_in_a_sentence_and_one_goes_when_one_comes(
    tmp_path: Path, box: MakeBox, trace: TakeTrace
) -> None:
    before = trace()
    small = BridgeNetwork(str(tmp_path), subnet="10.9.8.0/30")
    assert small.attach(box().pid, "one").address == "10.9.8.2"
    with pytest.raises(NetworkError, match=r"all 1 addresses of 10\.9\.8\.0/30 are taken"):
        small.attach(box().pid, "two")
    small.detach("one")
    assert small.attach(box().pid, "two").address == "10.9.8.2"
    small.detach("two")
    assert trace() == before


def test_a_failed_attach_leaves_nothing(bridge: BridgeNetwork, box: MakeBox, trace: TakeTrace) -> None:
    before = trace()
    container = box()
    with container.inside(NetlinkSocket) as netlink:  # somebody has an eth0 there already
        peer = rtnetlink.Peer("other", "02:00:00:00:00:04", container.netns)
        netlink.request(rtnetlink.create_veth("eth0", peer, master=0, mtu=1500, group=0))
    with pytest.raises(NetworkError, match="cannot make the link aufs0v2: File exists"):
        bridge.attach(container.pid, "one")
    assert trace() == before


def test_processes_without_a_namespace_of_their_own(bridge: BridgeNetwork, box: MakeBox, trace: TakeTrace) -> None:
    before = trace()
    container = box()
    pid = container.pid
    container.kill()
    with pytest.raises(NetworkError, match=f"process {pid} has no network namespace"):
        bridge.attach(pid, "one")
    with pytest.raises(NetworkError, match="host's own network namespace"):
        bridge.attach(os.getpid(), "one")
    assert trace() == before


def test_a_subnet_that_the_host_reaches_already_is_not_taken(
    bridge: BridgeNetwork, box: MakeBox, outside: Box
) -> None:
    with NetlinkSocket() as netlink:
        netlink.request(rtnetlink.add_address(links()["uplink"].number, IPv4Interface("172.30.7.1/24")))
    container = box()
    endpoint = bridge.attach(container.pid, "one")
    assert (endpoint.address, endpoint.gateway) == ("172.31.0.2", "172.31.0.1")
    assert talk(container.open_socket(), outside.server(OUTSIDE), OUTSIDE) == HOST
    bridge.detach("one")


def test_two_roots_on_one_host(tmp_path: Path, box: MakeBox, outside: Box, trace: TakeTrace) -> None:
    before = trace()
    first, second = BridgeNetwork(str(tmp_path / "first")), BridgeNetwork(str(tmp_path / "second"))
    one, two = box(), box()
    here, there = first.attach(one.pid, "same id"), second.attach(two.pid, "same id")
    assert (here.host_link, there.host_link) == ("aufs0v2", "aufs1v2")
    assert (here.address, there.address) == ("172.30.0.2", "172.31.0.2")
    server = two.server(there.address)
    server.settimeout(0.3)
    with server, one.open_socket() as client:  # strangers, as two networks of docker's are
        client.setblocking(False)
        client.connect_ex((there.address, 7))
        with pytest.raises(TimeoutError):
            server.accept()
    first.detach("same id")
    assert talk(two.open_socket(), outside.server(OUTSIDE), OUTSIDE) == HOST
    assert second.attach(box().pid, "another").host_link == "aufs1v3"
    second.detach("another")
    second.detach("same id")
    assert trace() == before


def test_a_bridge_of_somebody_elses_is_left_alone(bridge: BridgeNetwork, box: MakeBox) -> None:
    with NetlinkSocket() as netlink:
        netlink.request(rtnetlink.create_bridge("aufs0", mac="02:00:00:00:00:01", mtu=1500, group=0))
    assert bridge.attach(box().pid, "one").host_link == "aufs1v2"
    bridge.detach("one")
    assert "aufs0" in links() and "aufs1" not in links()


def test_a_flushed_ruleset_and_forwarding_turned_off_are_put_right_by_the_next(
    bridge: BridgeNetwork, box: MakeBox, outside: Box, trace: TakeTrace
) -> None:
    before = trace()
    container = box()
    bridge.attach(container.pid, "one")
    nft("flush", "ruleset")
    sysctl("ipv4/ip_forward", "0")
    bridge.attach(box().pid, "two")
    assert talk(container.open_socket(), outside.server(OUTSIDE), OUTSIDE) == HOST
    bridge.detach("one")
    bridge.detach("two")
    assert trace() == before


def test_leases_that_cannot_be_kept(tmp_path: Path, box: MakeBox, trace: TakeTrace) -> None:
    before = trace()
    (tmp_path / "file").write_text("")
    with pytest.raises(NetworkError, match=r"cannot use the network directory .*file/network: Not a directory"):
        BridgeNetwork(str(tmp_path / "file" / "network")).attach(box().pid, "one")
    (tmp_path / "leases.sqlite").write_text("this is no database, though it is long enough to look at " * 20)
    with pytest.raises(NetworkError, match=r"cannot use the leases in .*: file is not a database"):
        BridgeNetwork(str(tmp_path)).attach(box().pid, "one")
    assert trace() == before


def test_a_bridge_that_lost_its_address(bridge: BridgeNetwork, box: MakeBox, trace: TakeTrace) -> None:
    before = trace()
    bridge.attach(box().pid, "one")
    bridge.attach(box().pid, "two")
    subprocess.run(["ip", "address", "flush", "dev", "aufs0"], check=True)
    with pytest.raises(NetworkError, match="the bridge aufs0 has lost its address"):
        bridge.attach(box().pid, "three")
    bridge.detach("one")
    assert {"aufs0", "aufs0v3"} <= set(links()) and "aufs0v2" not in links()
    bridge.detach("two")
    assert trace() == before


def test_after_a_reboot_the_name_may_be_another_roots(tmp_path: Path, box: MakeBox, trace: TakeTrace) -> None:
    first, second = BridgeNetwork(str(tmp_path / "first")), BridgeNetwork(str(tmp_path / "second"))
    for name in ("one", "two"):
        first.attach(box().pid, name)
    with fresh_host():  # the leases are there, the kernel's state is not
        before = trace()
        container = Box()
        second.attach(container.pid, "three")
        during = trace()
        first.detach("one")
        first.cleanup(["two"])
        first.detach("two")
        assert trace() == during
        second.detach("three")
        container.kill()
        assert trace() == before


@pytest.mark.parametrize("name", ["r" * 200, b"caf\xe9".decode(errors="surrogateescape"), "with space"])
def test_roots_of_all_kinds(tmp_path: Path, box: MakeBox, trace: TakeTrace, name: str) -> None:
    before = trace()
    root = os.path.join(tmp_path, name, name)
    BridgeNetwork(root).attach(box().pid, "one")
    assert BridgeNetwork(root).attach(box().pid, "two").host_link == "aufs0v3"
    BridgeNetwork(root).detach("one")
    BridgeNetwork(root).detach("two")
    assert trace() == before
