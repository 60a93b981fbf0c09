"""The network's three files in a container's /etc, as text: resolv.conf, hosts, hostname.

Docker's rules (moby, daemon/libnetwork/internal/resolvconf): a nameserver on the host's loopback cannot be reached
from the container; where none is left, systemd-resolved's real ones, then public ones.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

HOST_RESOLV = "/etc/resolv.conf"
HOST_HOSTS = "/etc/hosts"
# systemd-resolved points the host at 127.0.0.53 and keeps its upstream servers here (systemd-resolved.service(8)).
RESOLVED_RESOLV = "/run/systemd/resolve/resolv.conf"
FALLBACK = ("8.8.8.8", "8.8.4.4")


def read(path: str) -> str:
    """The file's text; "" when there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return file.read()
    except OSError:
        return ""


def nameservers(text: str) -> list[str]:
    """The addresses of a resolv.conf, as written (resolv.conf(5))."""
    lines = (_words(line) for line in text.split("\n"))
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def _words(line: str) -> list[str]:
    """Between blanks and tabs, which are res_init(3)'s; str.split() knows a dozen others."""
    return [word for word in line.replace("\t", " ").split(" ") if word]


def host_nameservers() -> list[str]:
    """The addresses of the host's nameservers that a container can reach."""
    return [server for server in nameservers(read(HOST_RESOLV)) if _reachable(server)]


def resolv(source: Callable[[str], str] = read) -> str:
    """resolv.conf for a container with an IPv4 address of its own: the host's, with what it can reach."""
    text = source(HOST_RESOLV)
    servers = [server for server in nameservers(text) if _reachable(server)]
    servers = servers or [server for server in nameservers(source(RESOLVED_RESOLV)) if _reachable(server)]
    lines = text.removesuffix("\n").split("\n") if text else []
    kept = [line for line in lines if _words(line)[:1] != ["nameserver"]]
    return "\n".join([*kept, *(f"nameserver {server}" for server in servers or FALLBACK), ""])


def _reachable(server: str) -> bool:
    """Neither one on the host's loopback nor 0.0.0.0; and no IPv6 server, as the bridge has no IPv6."""
    try:
        address = socket.inet_pton(socket.AF_INET, server)  # ipaddress takes longer to import than all of this
    except (OSError, ValueError):
        return False
    return address[0] != 127 and any(address)


def hosts(hostname: str, address: str = "") -> str:
    """hosts(5) for a container; `address` is its own, if it has one. A name with dots is followed by its first part."""
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::\tip6-localnet",
        "ff00::\tip6-mcastprefix",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
    ]
    if hostname:
        short = hostname.partition(".")[0]
        names = hostname if short == hostname else f"{hostname} {short}"
        lines.append(f"{address or '127.0.0.1'}\t{names}")
    return "\n".join([*lines, ""])


def hostname(name: str) -> str:
    return f"{name}\n"
