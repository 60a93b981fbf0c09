"""Sandbox: the network namespace of a container, and what is set up inside it.

A thread enters it and ends there, so nothing has to find the way back: a signal handler that raises between setns
there and setns back would strand a caller that went itself, and handlers run in the main thread only. Sockets stay in
the namespace in which they were made, so that thread hands its netlink socket out (setns(2), network_namespaces(7)).
"""

from __future__ import annotations

import os
import threading
from ipaddress import IPv4Address, IPv4Interface
from types import TracebackType

from runtime.engine.networks import rtnetlink, sysctl
from runtime.engine.networks.netlink import NetlinkSocket
from runtime.errors import NetworkError
from unionfs.linux import consts, processes

INTERFACE = "eth0"
_LOOPBACK = 1  # the index of lo in every namespace (net/core/dev.c, LOOPBACK_IFINDEX)


class Sandbox:
    """The network namespace of process `pid`, kept open until `close`. NetworkError if it is the host's or gone."""

    def __init__(self, pid: int) -> None:
        try:
            self.fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NetworkError(f"process {pid} has no network namespace to attach: {error.strerror}") from error
        self.inode = os.fstat(self.fd).st_ino
        if self.inode == os.stat("/proc/thread-self/ns/net").st_ino:
            self.close()
            raise NetworkError(f"process {pid} is in the host's own network namespace: use --network host")

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def configure(self, address: IPv4Interface, gateway: IPv4Address) -> None:
        """Bring lo and eth0 up; give eth0 its address and the default route. OSError."""
        with self._enter(INTERFACE) as netlink:
            (link,) = rtnetlink.links(netlink.request(rtnetlink.get_link(INTERFACE)))
            netlink.request(
                rtnetlink.set_link(_LOOPBACK, up=True),
                rtnetlink.set_link(link.number, up=True),
                rtnetlink.add_address(link.number, address),
                rtnetlink.add_default_route(link.number, gateway),
            )

    def _enter(self, without_ipv6: str = "") -> NetlinkSocket:
        made: list[NetlinkSocket | BaseException] = []

        def work() -> None:
            try:
                processes.setns(self.fd, consts.CLONE_NEWNET)
                if without_ipv6:
                    sysctl.disable_ipv6(without_ipv6)
                made.append(NetlinkSocket())
            except BaseException as failure:  # handed to the caller below, whatever it is
                made.append(failure)

        thread = threading.Thread(target=work, name="sandbox")
        thread.start()
        thread.join()
        (result,) = made
        if isinstance(result, BaseException):
            raise result
        return result
