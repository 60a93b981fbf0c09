"""The packet filter: our table beside other tools', and iptables in place of nft."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network

import pytest

from drivers.disk.programs import find
from runtime.engine.networks import command, iptables, nat
from runtime.engine.networks.bridge import BridgeNetwork
from runtime.errors import NetworkError
from tests.runtime.engine.networks.conftest import HOST, OUTSIDE, Trace
from tests.runtime.engine.networks.netns import Box, nft, talk
from unionfs.linux import consts, mounts

pytestmark = pytest.mark.needs("netns", "program:nft")

MakeBox = Callable[[], Box]
TakeTrace = Callable[[], Trace]
RULES = nat.Rules("aufs0", IPv4Network("172.30.0.0/16"), closed=False)


@pytest.fixture
def no_nft() -> Iterator[None]:
    """nft as if it were not installed: something that cannot be executed lies over it."""
    path = os.path.realpath(shutil.which("nft") or "")
    mounts.mount("/dev/null", path, None, consts.MS_BIND)
    yield
    mounts.umount2(path)


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_the_table_comes_and_goes_whole(host: None) -> None:
    assert not nat.present("aufs0")
    nat.remove("aufs0")
    nat.add(RULES)
    assert nat.present("aufs0") and not nat.present("aufs1")
    once = nft("list", "ruleset")
    nat.add(RULES)
    assert nft("list", "ruleset") == once
    nat.add(RULES._replace(bridge="aufs1"))
    nat.remove("aufs0")
    assert nft("list", "tables") == "table ip fuse-aufs-aufs1\n"
    nat.remove("aufs1")
    assert nft("list", "tables") == ""


def test_a_refused_transaction_is_a_sentence_and_leaves_nothing(host: None) -> None:
    with pytest.raises(NetworkError, match="nft: "):
        nat.add(RULES._replace(bridge="no such { name"))
    assert nft("list", "tables") == ""


@pytest.mark.usefixtures("no_nft")
def test_without_nft_and_iptables(bridge: BridgeNetwork, box: MakeBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    if find("iptables", "iptables-legacy"):
        pytest.skip("iptables is installed where every root looks for it")
    with pytest.raises(NetworkError, match=r"nothing here can masquerade: `apt install nftables`"):
        bridge.attach(box().pid, "one")


@pytest.mark.needs("program:iptables")
@pytest.mark.usefixtures("no_nft")
def test_iptables_where_nft_is_not_installed(
    bridge: BridgeNetwork, box: MakeBox, outside: Box
) -> None:
    container = box()
    endpoint = bridge.attach(container.pid, "one")
    rules = run("iptables", "-S"), run("iptables", "-t", "nat", "-S")
    bridge.attach(box().pid, "two")
    assert (run("iptables", "-S"), run("iptables", "-t", "nat", "-S")) == rules
    assert talk(container.open_socket(), outside.server(OUTSIDE), OUTSIDE) == HOST
    assert outside_is_kept_out(container, endpoint.address, outside)
    bridge.detach("one")
    bridge.detach("two")
    assert "aufs" not in run("iptables", "-S") + run("iptables", "-t", "nat", "-S")


@pytest.mark.needs("program:iptables-legacy")
def test_legacy_iptables_where_the_kernel_has_no_nf_tables(
    bridge: BridgeNetwork, box: MakeBox, outside: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nat, "_nft_table", lambda name: None)
    container = box()
    endpoint = bridge.attach(container.pid, "one")
    assert nft("list", "tables") == ""
    assert talk(container.open_socket(), outside.server(OUTSIDE), OUTSIDE) == HOST
    assert outside_is_kept_out(container, endpoint.address, outside)
    bridge.detach("one")
    assert "aufs" not in run("iptables-legacy", "-S") + run("iptables-legacy", "-t", "nat", "-S")


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param(name, marks=pytest.mark.needs(f"program:{name}"))
        for name in ("iptables-nft", "iptables-legacy")
    ],
)
def test_a_forward_chain_that_another_tool_closed(bridge: BridgeNetwork, box: MakeBox, outside: Box, tool: str) -> None:
    run(tool, "-P", "FORWARD", "DROP")
    before = run(tool, "-S")
    container = box()
    endpoint = bridge.attach(container.pid, "one")
    assert talk(container.open_socket(), outside.server(OUTSIDE), OUTSIDE) == HOST
    assert outside_is_kept_out(container, endpoint.address, outside)
    bridge.detach("one")
    assert run(tool, "-S") == before


def outside_is_kept_out(container: Box, address: str, outside: Box) -> bool:
    with outside.inside(lambda: subprocess.Popen(["ip", "route", "add", "default", "via", HOST])) as route:
        assert route.wait() == 0
    with container.server(address) as server, outside.open_socket() as client:
        server.settimeout(0.3)
        client.setblocking(False)
        client.connect_ex((address, 7))
        try:
            server.accept()
        except TimeoutError:
            return True
    return False


def test_the_jump_is_made_once(host: None) -> None:
    tool = shutil.which("iptables")
    if tool is None:
        pytest.skip("iptables is not installed")
    for _ in range(2):
        iptables.add(tool, "aufs0", RULES.subnet, closed=True)
    assert run(tool, "-S", "FORWARD").count("-j fuse-aufs-aufs0") == 1
    assert run(tool, "-t", "nat", "-S", "POSTROUTING").count("-j fuse-aufs-aufs0") == 1
    for table in ("filter", "nat"):
        iptables.remove(tool, table, "aufs0")
        iptables.remove(tool, table, "aufs0")
        assert "aufs" not in run(tool, "-t", table, "-S")


def test_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    cat, sh = find("cat"), find("no such program", "sh")
    assert cat and sh and find("no such program") is None
    assert command.run(cat, text="in\n" * 5000) == "in\n" * 5000
    with pytest.raises(NetworkError, match=r"^sh: the reason$"):
        command.run(sh, "-c", "echo the reason >&2; echo more; exit 3")
    with pytest.raises(NetworkError, match=r"^sh: exit code 3$"):
        command.run(sh, "-c", "exit 3")
    assert command.attempt(sh, "-c", "echo out; exit 4") == (4, "out\n")
    monkeypatch.setattr(command, "_PATIENCE", 0.05)
    with pytest.raises(NetworkError, match=r"^sh has not ended within 0.05 seconds$"):
        command.run(sh, "-c", "exec sleep 600")


def test_a_command_ends_with_who_waits_for_it() -> None:
    """Who is interrupted lets go of the host's lock, and nothing changes its rules any more then."""
    sh = find("sh")
    assert sh

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            command.run(sh, "-c", "kill -USR1 $PPID; exec sleep 600")
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
