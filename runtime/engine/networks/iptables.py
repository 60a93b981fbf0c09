"""The packet filter's part of a bridge with iptables: one chain of the bridge's own in each table, and a jump to it.

For kernels and machines without nft (runtime/engine/networks/nat.py decides), and for being let through a FORWARD chain
that another tool guards. iptables-restore replaces a chain's rules in one transaction; the jump follows, so a chain
is never entered half-made. `tool` is the path of iptables, iptables-nft or iptables-legacy.
"""

from __future__ import annotations

from ipaddress import IPv4Network

from runtime.engine.networks import command

_JUMPS = {"filter": ("FORWARD", "-I"), "nat": ("POSTROUTING", "-A")}


def chain_of(bridge: str) -> str:
    return f"fuse-aufs-{bridge}"


def add(tool: str, bridge: str, subnet: IPv4Network, *, closed: bool) -> None:
    """What nat.Rules says, in iptables' words. NetworkError."""
    forward = [
        f"-i {bridge} -o {bridge} -j ACCEPT",
        f"-i {bridge} ! -s {subnet} -j DROP",
        f"-i {bridge} -j ACCEPT",
        f"-o {bridge} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        f"-o {bridge} -j DROP",
    ]
    if closed:
        family = bridge.rstrip("0123456789") + "+"
        forward += [f"-i {family} -j RETURN", f"-o {family} -j RETURN", "-j DROP"]
    _replace(tool, "nat", bridge, [f"-s {subnet} ! -o {bridge} -j MASQUERADE"])
    _replace(tool, "filter", bridge, forward)


def let_through(tool: str, bridge: str) -> None:
    """Accept what goes to and comes from the bridge, before any rule or policy of FORWARD. NetworkError."""
    _replace(tool, "filter", bridge, [f"-i {bridge} -j ACCEPT", f"-o {bridge} -j ACCEPT"])


def masquerades(tool: str, bridge: str) -> bool:
    """Whether `add` has been done for the bridge and nobody flushed it since."""
    return _jumps(tool, "nat", bridge)


def remove(tool: str, table: str, bridge: str) -> None:
    """Take the bridge's chain out of one table. It is fine if there is none. NetworkError."""
    chain = chain_of(bridge)
    code, _ = command.attempt(tool, "-w", "-t", table, "-S", chain)
    if code:
        return
    if _jumps(tool, table, bridge):
        command.run(tool, "-w", "-t", table, "-D", _JUMPS[table][0], "-j", chain)
    command.run(tool, "-w", "-t", table, "-F", chain)
    command.run(tool, "-w", "-t", table, "-X", chain)


def _replace(tool: str, table: str, bridge: str, rules: list[str]) -> None:
    chain = chain_of(bridge)
    lines = [f"*{table}", f":{chain} - [0:0]", *(f"-A {chain} {rule}" for rule in rules), "COMMIT", ""]
    command.run(f"{tool}-restore", "-w", "--noflush", text="\n".join(lines))
    if not _jumps(tool, table, bridge):
        builtin, position = _JUMPS[table]
        command.run(tool, "-w", "-t", table, position, builtin, "-j", chain)


def _jumps(tool: str, table: str, bridge: str) -> bool:
    code, _ = command.attempt(tool, "-w", "-t", table, "-C", _JUMPS[table][0], "-j", chain_of(bridge))
    return code == 0
