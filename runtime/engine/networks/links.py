"""The host's side of a bridge: the lock, making it, knowing whose it is, taking it down.

A bridge is its owner's by its alias, `fuse-aufs ROOT`, written last: one without is half-made, by a process that was
killed. It and its ports are one link group, so that they go in one request. Roots that share a host have a bridge
each: aufs0, aufs1 … All of `Host` wants the lock held and raises OSError or NetworkError.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from drivers.disk import locks
from drivers.errors import TimedOut
from runtime import errors
from runtime.engine.networks import files, nat, rtnetlink, subnets, sysctl
from runtime.engine.networks.netlink import NetlinkSocket, Request
from runtime.engine.networks.rtnetlink import Link
from runtime.errors import NetworkError

_OWNED = "fuse-aufs"
_OWNED_FORWARDING = "fuse-aufs+forwarding"  # and forwarding was off before us (sysctl.py)
_ALIAS_MAX = 255  # linux/if.h, IFALIASZ less its NUL
_ETHERNET_MTU = 1500
_PATIENCE = locks.PATIENCE


@contextmanager
def locked() -> Iterator[None]:
    """Hold the calling thread's network namespace: flock(2) on its file in /proc, one file however it is reached.

    It orders the processes of every root, and a killed holder lets go. Any user can take it: NetworkError says who has.
    """
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            locks.lock(fd, "the network namespace (/proc/self/ns/net)", patience=_PATIENCE)
        except TimedOut as error:
            raise NetworkError(str(error)) from None
        yield
    finally:
        os.close(fd)


step = partial(errors.step, kind=NetworkError)


def mac_of(address: IPv4Address) -> str:
    """Docker's: locally administered, and as unique as the address."""
    return "02:42:" + address.packed.hex(":")


def group_of(bridge: str) -> int:
    """The link group of a bridge and its ports: a number that nobody gives by hand."""
    return 0x40000000 | zlib.crc32(bridge.encode()) >> 2


class Host:
    """The links of the calling thread's network namespace, as seen by the owner of the directory `root`."""

    def __init__(self, root: str) -> None:
        self._owner = _owner(root)
        self.netlink = NetlinkSocket()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.netlink.close()

    def link(self, name: str) -> Link | None:
        try:
            (found,) = rtnetlink.links(self.netlink.request(rtnetlink.get_link(name)))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return found

    def _owns(self, link: Link) -> bool:
        return _is_ours(link) and link.alias.partition(" ")[2] == self._owner

    def address(self, bridge: Link) -> IPv4Interface:
        """The gateway's address and, in it, the subnet."""
        for index, address in rtnetlink.addresses(self.netlink.dump(rtnetlink.dump_addresses(bridge.number))):
            if index == bridge.number:
                return address
        raise NetworkError(f"the bridge {bridge.name} has lost its address: stop its containers and start them again")

    def owned(self, name: str) -> Link | None:
        """The bridge `name`, if it is the owner's."""
        link = self._whole(name) if name else None
        return link if link and self._owns(link) else None

    def find(self, names: Iterable[str]) -> tuple[str, Link | None]:
        """The first of `names` that is the owner's bridge, with it, or that is free."""
        for name in names:
            link = self._whole(name)
            if link is None or self._owns(link):
                return name, link
        raise NetworkError("every name for a bridge is taken: remove one of them (ip link del NAME)")

    def _whole(self, name: str) -> Link | None:
        """The link `name`. A bridge that nobody finished goes: the lock is ours, so nobody is about to."""
        link = self.link(name)
        if link and link.group == group_of(name) and not link.alias:
            self._delete(rtnetlink.delete_group(link.group))
            return None
        return link

    def make(self, name: str, wished: IPv4Network) -> Link:
        """A bridge with its address, up, and the owner's."""
        with step(f"make the bridge {name}"):
            routes = list(rtnetlink.routes(self.netlink.dump(rtnetlink.dump_routes())))
            others = list(rtnetlink.links(self.netlink.dump(rtnetlink.dump_links())))
            servers = [IPv4Network(server) for server in files.host_nameservers()]  # which no bridge may hide
            subnet = subnets.choose(wished, [*(route.destination for route in routes), *servers])
            gateway = IPv4Interface((int(subnet.network_address) + 1, subnet.prefixlen))
            uplinks = {route.link for route in routes if route.destination.prefixlen == 0}
            mtu = min((link.mtu for link in others if link.number in uplinks), default=_ETHERNET_MTU)
            mac = mac_of(gateway.ip)
            self.netlink.request(rtnetlink.create_bridge(name, mac=mac, mtu=mtu, group=group_of(name)))
            sysctl.disable_ipv6(name)
            (link,) = rtnetlink.links(self.netlink.request(rtnetlink.get_link(name)))
            self.netlink.request(
                rtnetlink.add_address(link.number, gateway),
                rtnetlink.set_link(link.number, up=True),
            )
            nat.remove(name)  # a table of a bridge of that name that somebody deleted by hand
            closed = not sysctl.forwards() or any(_turned_forwarding_on(other) for other in others)
            return self._claim(link, closed=closed)

    def serve(self, bridge: Link) -> None:
        """Forward and masquerade for the bridge, if it is new or somebody has undone it since."""
        if not sysctl.forwards():
            if not _turned_forwarding_on(bridge):
                # Said before it is done, so that it is undone even when we are killed in between.
                bridge = self._claim(bridge, closed=True)
                nat.remove(bridge.name)
            sysctl.forward(on=True)
        if not nat.present(bridge.name):
            nat.add(nat.Rules(bridge.name, self.address(bridge).network, _turned_forwarding_on(bridge)))

    def _claim(self, link: Link, *, closed: bool) -> Link:
        alias = f"{_OWNED_FORWARDING if closed else _OWNED} {self._owner}"
        self.netlink.request(rtnetlink.set_link(link.number, alias=alias))
        return link._replace(alias=alias)

    def add_port(self, bridge: Link, name: str, peer: rtnetlink.Peer) -> None:
        """A veth pair from the bridge into a sandbox; one of that name, from the container's former life, goes."""
        self.delete_link(name)
        group = group_of(bridge.name)
        with step(f"make the link {name}"):
            self.netlink.request(rtnetlink.create_veth(name, peer, master=bridge.number, mtu=bridge.mtu, group=group))

    def delete_link(self, name: str) -> None:
        self._delete(rtnetlink.delete_link(name))

    def dismantle(self, bridge: Link) -> None:
        """Take the bridge away, with its ports, its rules and, if it was us and nobody is left, forwarding.

        If we are killed on the way the bridge is left, which goes last, and so there is a second try.
        """
        nat.remove(bridge.name)
        if _turned_forwarding_on(bridge):
            links = rtnetlink.links(self.netlink.dump(rtnetlink.dump_links()))
            if not any(_is_ours(link) for link in links if link.number != bridge.number):
                sysctl.forward(on=False)
        self._delete(rtnetlink.delete_group(bridge.group))

    def _delete(self, request: Request) -> None:
        """It is fine if there is none: a port goes with the namespace of its peer."""
        try:
            self.netlink.request(request)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


def _owner(root: str) -> str:
    """The root as an alias can hold it: itself, or a digest where it is too long."""
    raw = os.fsencode(root)
    if len(raw) <= _ALIAS_MAX - len(f"{_OWNED_FORWARDING} "):
        return root
    import hashlib  # loading OpenSSL costs more than the rest of an attach, and is for nobody else

    return hashlib.sha256(raw).hexdigest()


def _is_ours(link: Link) -> bool:
    """Whether it is the bridge of some root."""
    return link.alias.partition(" ")[0] in (_OWNED, _OWNED_FORWARDING)


def _turned_forwarding_on(link: Link) -> bool:
    return link.alias.partition(" ")[0] == _OWNED_FORWARDING
