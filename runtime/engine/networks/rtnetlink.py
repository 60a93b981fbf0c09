"""Links, addresses and routes as netlink requests and back: pure, no descriptor.

Sources: rtnetlink(7), linux/rtnetlink.h, linux/if_link.h, linux/veth.h, net/core/rtnetlink.c, drivers/net/veth.c.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import NamedTuple

from runtime.engine.networks.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    Request,
    attribute,
    attributes,
    nested,
    string,
    text,
    u32,
)

# linux/rtnetlink.h
RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_GETROUTE = 26
RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTN_UNICAST = 1
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE = 0
RT_TABLE_MAIN = 254

# linux/if_link.h
IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_GROUP = 27
IFLA_NET_NS_FD = 28
IFLA_EXT_MASK = 29
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
VETH_INFO_PEER = 1
RTEXT_FILTER_SKIP_STATS = 8

# linux/if_addr.h
IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_BROADCAST = 4

# linux/if.h
IFF_UP = 1

ifinfomsg = struct.Struct("=BxHiII")  # family, device type, index, flags, which flags to change
ifaddrmsg = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, link index
rtmsg = struct.Struct("=BBBBBBBBI")  # family, dst length, src length, tos, table, protocol, scope, type, flags

_CREATE = NLM_F_CREATE | NLM_F_EXCL


class Link(NamedTuple):
    number: int  # ifindex
    name: str
    up: bool
    kind: str  # "bridge", "veth" …; "" of hardware and loopback
    alias: str
    master: int  # index of the bridge that it is a port of, 0: none
    mtu: int
    mac: str
    group: int


class Route(NamedTuple):
    destination: IPv4Network
    link: int  # index, 0: none (blackhole) or several (multipath)


class Peer(NamedTuple):
    """The far end of a veth pair, born down in the network namespace that `netns` is open on."""

    name: str
    mac: str
    netns: int


def _mac(value: str) -> bytes:
    return bytes.fromhex(value.replace(":", ""))


def _new_link(*parts: bytes, index: int = 0, up: bool | None = None, flags: int = _CREATE) -> Request:
    state = (0, 0) if up is None else (IFF_UP if up else 0, IFF_UP)
    return Request(RTM_NEWLINK, flags, ifinfomsg.pack(socket.AF_UNSPEC, 0, index, *state) + b"".join(parts))


def create_bridge(name: str, *, mac: str, mtu: int, group: int) -> Request:
    """A bridge, down. Its address is fixed: an unset one would follow its ports' (net/bridge/br_stp_if.c)."""
    info = nested(IFLA_LINKINFO, string(IFLA_INFO_KIND, "bridge"))
    named = string(IFLA_IFNAME, name) + attribute(IFLA_ADDRESS, _mac(mac)) + u32(IFLA_MTU, mtu) + u32(IFLA_GROUP, group)
    return _new_link(named, info)


def create_veth(name: str, peer: Peer, *, master: int, mtu: int, group: int) -> Request:
    """A veth pair: `name` here, up and a port of link `master`; its peer at once in the other namespace.

    A pair made here and then moved costs an RCU grace period, forty times this.
    """
    far = nested(
        VETH_INFO_PEER,
        ifinfomsg.pack(socket.AF_UNSPEC, 0, 0, 0, 0),
        string(IFLA_IFNAME, peer.name),
        attribute(IFLA_ADDRESS, _mac(peer.mac)),
        u32(IFLA_MTU, mtu),
        u32(IFLA_NET_NS_FD, peer.netns),
    )
    info = nested(IFLA_LINKINFO, string(IFLA_INFO_KIND, "veth"), nested(IFLA_INFO_DATA, far))
    named = string(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu) + u32(IFLA_MASTER, master) + u32(IFLA_GROUP, group)
    return _new_link(named, info, up=True)


def set_link(index: int, *, up: bool | None = None, alias: str | None = None) -> Request:
    parts = [] if alias is None else [attribute(IFLA_IFALIAS, os.fsencode(alias))]
    return _new_link(*parts, index=index, up=up, flags=0)


def delete_link(name: str) -> Request:
    """Either end of a veth pair takes the other along. ENODEV if there is none."""
    return Request(RTM_DELLINK, 0, ifinfomsg.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + string(IFLA_IFNAME, name))


def delete_group(group: int) -> Request:
    """Every link of the group at once, for the price of one: the grace periods are shared. ENODEV if it is empty."""
    return Request(RTM_DELLINK, 0, ifinfomsg.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + u32(IFLA_GROUP, group))


def get_link(name: str) -> Request:
    """ENODEV if there is none."""
    body = ifinfomsg.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return Request(RTM_GETLINK, 0, body + string(IFLA_IFNAME, name) + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS))


def dump_links() -> Request:
    body = ifinfomsg.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return Request(RTM_GETLINK, 0, body + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS))


def add_address(index: int, address: IPv4Interface) -> Request:
    """EEXIST if the link has it."""
    body = ifaddrmsg.pack(socket.AF_INET, address.network.prefixlen, 0, RT_SCOPE_UNIVERSE, index)
    parts = attribute(IFA_LOCAL, address.ip.packed) + attribute(IFA_ADDRESS, address.ip.packed)
    broadcast = attribute(IFA_BROADCAST, address.network.broadcast_address.packed)
    return Request(RTM_NEWADDR, _CREATE, body + parts + broadcast)


def dump_addresses(index: int) -> Request:
    """The IPv4 addresses of one link."""
    return Request(RTM_GETADDR, 0, ifaddrmsg.pack(socket.AF_INET, 0, 0, 0, index))


def add_default_route(index: int, gateway: IPv4Address) -> Request:
    """By `gateway`, which an address of the link must reach already (ENETUNREACH)."""
    body = rtmsg.pack(socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    return Request(RTM_NEWROUTE, _CREATE, body + attribute(RTA_GATEWAY, gateway.packed) + u32(RTA_OIF, index))


def dump_routes() -> Request:
    """All IPv4 routes of all tables: an address of the host is a /32 in the table `local`."""
    return Request(RTM_GETROUTE, 0, rtmsg.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))


def links(messages: Iterable[Message]) -> Iterator[Link]:
    for message in messages:
        if message.type != RTM_NEWLINK:
            continue
        _, _, index, flags, _ = ifinfomsg.unpack_from(message.body)
        found = attributes(message.body[ifinfomsg.size :])
        info = attributes(found.get(IFLA_LINKINFO, b""))
        yield Link(
            index,
            text(found.get(IFLA_IFNAME, b"")),
            bool(flags & IFF_UP),
            text(info.get(IFLA_INFO_KIND, b"")),
            text(found.get(IFLA_IFALIAS, b"")),
            _number(found.get(IFLA_MASTER)),
            _number(found.get(IFLA_MTU)),
            found.get(IFLA_ADDRESS, b"").hex(":"),
            _number(found.get(IFLA_GROUP)),
        )


def addresses(messages: Iterable[Message]) -> Iterator[tuple[int, IPv4Interface]]:
    """(link index, address) pairs."""
    for message in messages:
        if message.type != RTM_NEWADDR:
            continue
        _, prefix, _, _, index = ifaddrmsg.unpack_from(message.body)
        found = attributes(message.body[ifaddrmsg.size :])
        local = found.get(IFA_LOCAL) or found[IFA_ADDRESS]
        yield index, IPv4Interface((local, prefix))


def routes(messages: Iterable[Message]) -> Iterator[Route]:
    for message in messages:
        if message.type != RTM_NEWROUTE:
            continue
        _, prefix, *_ = rtmsg.unpack_from(message.body)
        found = attributes(message.body[rtmsg.size :])
        yield Route(IPv4Network((found.get(RTA_DST, bytes(4)), prefix)), _number(found.get(RTA_OIF)))


def _number(value: bytes | None) -> int:
    return struct.unpack("=I", value)[0] if value else 0
