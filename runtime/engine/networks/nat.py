"""The packet filter's part of a bridge: masquerading, and what may be forwarded to and from it.

One nft transaction makes a table of the bridge's own, so that it is there whole or not at all, and goes as one. Where
nft is not installed or the kernel has no nf_tables, iptables does the same (runtime/engine/networks/iptables.py).

Drop is final in every table, accept only in its own (nft(8), "Verdict statements"). So where another tool keeps
iptables' FORWARD chain (docker, ufw: policy DROP), our accepting table is not enough and the bridge is let through
there too, as docker does it. A hand-written nft ruleset that drops forwarded packets stays its writer's to open.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import NamedTuple

from drivers.disk.programs import find
from runtime.engine.networks import command, iptables
from runtime.engine.networks.netlink import NetlinkSocket, Request, string
from runtime.errors import NetworkError

# linux/netfilter/nfnetlink.h, nf_tables.h
NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETTABLE = 1
NFTA_TABLE_NAME = 1
nfgenmsg = struct.Struct("=BBH")  # family, version, resource

_LEGACY_TABLES = "/proc/thread-self/net/ip_tables_names"


class Rules(NamedTuple):
    """What a bridge needs of the packet filter."""

    bridge: str
    subnet: IPv4Network
    closed: bool  # forwarding was off before us: it stays off between all other links

    def nft(self) -> str:
        """The transaction for `nft -f`."""
        table, bridge, subnet = table_of(self.bridge), self.bridge, self.subnet
        family = bridge.rstrip("0123456789") + "*"
        closing = f'iifname != "{family}" oifname != "{family}" drop' if self.closed else ""
        return f"""
            table ip {table} {{
                chain postrouting {{
                    type nat hook postrouting priority srcnat; policy accept;
                    ip saddr {subnet} oifname != "{bridge}" masquerade
                }}
                chain forward {{
                    type filter hook forward priority filter; policy accept;
                    iifname "{bridge}" oifname "{bridge}" accept
                    iifname "{bridge}" ip saddr != {subnet} drop
                    oifname "{bridge}" ct state established,related accept
                    oifname "{bridge}" drop
                    {closing}
                }}
            }}
            """


def table_of(bridge: str) -> str:
    return f"fuse-aufs-{bridge}"


def present(bridge: str) -> bool:
    """Whether `add` has been done for the bridge and nobody flushed it since."""
    if _nft_table(table_of(bridge)):
        return True
    return any(table == "nat" and iptables.masquerades(tool, bridge) for tool, table in _iptables_tables())


def add(rules: Rules) -> None:
    """Put the rules into force, in place of the bridge's former ones. NetworkError when neither tool can."""
    has_nf_tables = _nft_table("filter") is not None
    nft = find("nft") if has_nf_tables else None
    if nft:
        # Only where there is one: a transaction that deletes waits for a grace period, three times what this takes.
        former = f"delete table ip {table_of(rules.bridge)}\n" if _nft_table(table_of(rules.bridge)) else ""
        command.run(nft, "-f", "-", text=former + rules.nft())
        for tool, table in _iptables_tables():
            if table == "filter":
                iptables.let_through(tool, rules.bridge)
        return
    program = find("iptables") if has_nf_tables else find("iptables-legacy", "iptables")
    if not program:
        raise NetworkError("nothing here can masquerade: `apt install nftables`, or --network none or host")
    iptables.add(program, rules.bridge, rules.subnet, closed=rules.closed)


def remove(bridge: str) -> None:
    """Take the bridge's rules away, from wherever they are. It is fine if there are none."""
    if _nft_table(table_of(bridge)):
        command.run(find("nft") or "nft", "delete", "table", "ip", table_of(bridge))
    for tool, table in _iptables_tables():
        iptables.remove(tool, table, bridge)


def _iptables_tables() -> Iterator[tuple[str, str]]:
    """(program, table) for each table that iptables of either kind keeps in the kernel."""
    try:
        with open(_LEGACY_TABLES, encoding="ascii") as names:
            legacy = names.read().split()
    except OSError:  # no x_tables in this kernel, or not loaded
        legacy = []
    for table in ("filter", "nat"):
        for kept, names_of in ((_nft_table(table), ("iptables-nft", "iptables")),
                               (table in legacy, ("iptables-legacy", "iptables"))):  # fmt: skip
            program = find(*names_of) if kept else None
            if program:
                yield program, table


def _nft_table(name: str) -> bool | None:
    """Whether the kernel has the table `ip NAME`; None when it has no nf_tables at all.

    Asking the kernel costs microseconds, starting nft milliseconds.
    """
    body = nfgenmsg.pack(socket.AF_INET, 0, 0) + string(NFTA_TABLE_NAME, name)
    try:
        with NetlinkSocket(NETLINK_NETFILTER) as netlink:
            netlink.request(Request(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, 0, body))
    except FileNotFoundError:
        return False
    except OSError as error:
        # No such netlink protocol, or nobody who registered for its messages (net/netfilter/nfnetlink.c).
        if error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise
    return True
