"""The kernel's switches that a bridge needs, in the network namespace of the calling thread (/proc/sys/net is its).

Forwarding is one switch for the whole host, so the bridges of all roots share it. The first bridge that finds it off
turns it on and says so in its alias (links.py), as every bridge that joins then does; the last of them to go turns it
off again. A bridge that found it on leaves it alone. The mark is in the kernel because the switch is: neither
outlives a reboot. Whoever comes to rely on it meanwhile loses it with our last container; docker never turns it off.
"""

from __future__ import annotations

import os

from runtime.errors import NetworkError

_NET = "/proc/sys/net/"
_FORWARD = "ipv4/ip_forward"


def forwards() -> bool:
    fd = os.open(_NET + _FORWARD, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1) == b"1"
    finally:
        os.close(fd)


def forward(on: bool) -> None:
    try:
        _write(_FORWARD, "1" if on else "0")
    except OSError as error:
        state = "on" if on else "off"
        raise NetworkError(f"cannot turn net.ipv4.ip_forward {state}: {error.strerror}") from error


def disable_ipv6(link: str) -> None:
    """Keep IPv6 off a link that has no use for it.

    Otherwise whoever has CAP_NET_RAW on the bridge turns the others' and the host's default route to itself with a
    router advertisement (CVE-2020-13401). A kernel without IPv6 needs nothing.
    """
    try:
        _write(f"ipv6/conf/{link}/disable_ipv6", "1")
    except FileNotFoundError:
        if os.path.exists(f"{_NET}ipv6"):
            raise


def _write(name: str, value: str) -> None:
    fd = os.open(_NET + name, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
