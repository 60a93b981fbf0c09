"""Network namespaces to test in: fresh hosts, boxes that stand for containers, and a machine outside.

Sockets keep the namespace in which they are made, so a test has its servers and clients in its own process.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from runtime.engine.networks import rtnetlink
from runtime.engine.networks.netlink import NetlinkSocket
from unionfs.linux import consts, processes

T = TypeVar("T")
PATIENCE = 30.0


def inside(netns: int, work: Callable[[], T]) -> T:
    """What `work` returns in the namespace that `netns` is open on."""
    results: list[T] = []
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            processes.setns(netns, consts.CLONE_NEWNET)
            results.append(work())
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    for failure in failures:
        raise failure
    return results[0]


@contextmanager
def fresh_host() -> Iterator[None]:
    """The caller (the main thread) is in a namespace of its own, loopback up, and afterwards back. It does not forward,
    as a new one does where the first namespace forwards (devinet_init_net(), net/ipv4/devinet.c)."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        processes.unshare(consts.CLONE_NEWNET)
        with NetlinkSocket() as netlink:
            netlink.request(rtnetlink.set_link(1, up=True))
        sysctl("ipv4/ip_forward", "0")
        yield
    finally:
        processes.setns(before, consts.CLONE_NEWNET)
        os.close(before)


class Box:
    """A process in a network namespace of its own that waits to be killed."""

    def __init__(self) -> None:
        ready, done = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                processes.prctl(consts.PR_SET_PDEATHSIG, signal.SIGKILL)
                processes.unshare(consts.CLONE_NEWNET)
                os.write(done, b".")
                os.close(done)
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        os.close(done)
        os.read(ready, 1)
        os.close(ready)
        self.netns = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def inside(self, work: Callable[[], T]) -> T:
        return inside(self.netns, work)

    def open_socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        made = self.inside(lambda: socket.socket(socket.AF_INET, kind))
        made.settimeout(PATIENCE)
        return made

    def server(self, address: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        made = self.open_socket(kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, 7))
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    def links(self) -> dict[str, rtnetlink.Link]:
        return self.inside(links)

    def kill(self) -> None:
        """The process and, with it, the last reference to its namespace."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.netns)
            self.pid = 0


def links() -> dict[str, rtnetlink.Link]:
    with NetlinkSocket() as netlink:
        return {link.name: link for link in rtnetlink.links(netlink.dump(rtnetlink.dump_links()))}


def routes() -> set[str]:
    with NetlinkSocket() as netlink:
        return {str(route.destination) for route in rtnetlink.routes(netlink.dump(rtnetlink.dump_routes()))}


def nft(*argv: str) -> str:
    return subprocess.run(["nft", *argv], check=True, capture_output=True, text=True).stdout


def sysctl(name: str, value: str | None = None) -> str:
    path = "/proc/sys/net/" + name
    if value is not None:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def talk(client: socket.socket, server: socket.socket, address: str) -> str:
    """Connect, exchange a word both ways, and return who the server saw."""
    with client, server:
        client.connect((address, 7))
        connection, (peer, _) = server.accept()
        with connection:
            client.sendall(b"ping")
            assert connection.recv(4) == b"ping"
            connection.sendall(b"pong")
            assert client.recv(4) == b"pong"
    return str(peer)
