from __future__ import annotations

import os
import signal
import sqlite3
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from runtime.engine.networks.leases import Leases
from runtime.errors import NetworkError

SUBNET = IPv4Network("10.0.0.0/29")  # .1 is the gateway's, .2 to .6 are to be had
NETNS = os.stat("/proc/self/ns/net").st_ino


def acquire(leases: Leases, container: str, subnet: IPv4Network = SUBNET) -> str:
    lease = leases.acquire(container, subnet, bridge="br", pid=os.getpid(), netns=NETNS)
    assert leases.get(container) == lease
    assert lease.port == f"brv{int(lease.address) - int(subnet.network_address)}"
    return str(lease.address)


def test_the_lowest_free_address_after_the_last_given(tmp_path: Path) -> None:
    with Leases(str(tmp_path / "db")) as leases:
        assert [acquire(leases, name) for name in "abc"] == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
        leases.release("b")
        assert [acquire(leases, name) for name in "def"] == ["10.0.0.5", "10.0.0.6", "10.0.0.3"]
        with pytest.raises(NetworkError, match=r"all 5 addresses of 10\.0\.0\.0/29 are taken"):
            acquire(leases, "g")
        assert leases.get("g") is None
        leases.release("a")
        assert acquire(leases, "g") == "10.0.0.2"


def test_a_container_has_one_address_and_keeps_it(tmp_path: Path) -> None:
    with Leases(str(tmp_path / "db")) as leases:
        assert acquire(leases, "a") == acquire(leases, "a") == "10.0.0.2"
        assert acquire(leases, "a", IPv4Network("10.1.0.0/29")) == "10.1.0.2"  # the bridge moved
        assert [lease.container for lease in leases.all()] == ["a"]


def test_a_subnet_without_room(tmp_path: Path) -> None:
    with Leases(str(tmp_path / "db")) as leases, pytest.raises(NetworkError, match="all 0 addresses"):
        acquire(leases, "a", IPv4Network("10.0.0.0/31"))


def test_leases_outlive_kill_9(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            leases = Leases(str(tmp_path / "db"))
            acquire(leases, "a")
            leases.bridge = "aufs3"
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with Leases(str(tmp_path / "db")) as leases:
        assert leases.bridge == "aufs3"
        assert acquire(leases, "b") == "10.0.0.3"


def test_who_is_killed_in_a_transaction_took_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    with Leases(path) as leases:
        acquire(leases, "a")
    pid = os.fork()
    if pid == 0:
        try:
            database = sqlite3.connect(path, isolation_level=None)
            database.execute("BEGIN IMMEDIATE")
            database.execute("DELETE FROM lease")
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    with Leases(path) as leases:
        assert acquire(leases, "b") == "10.0.0.3"


def test_stale_are_the_unlisted_whose_namespace_is_gone(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with Leases(str(tmp_path / "db")) as leases:
        acquire(leases, "alive")
        leases.acquire("dead", SUBNET, bridge="br", pid=pid, netns=NETNS)
        leases.acquire("listed", SUBNET, bridge="br", pid=pid, netns=NETNS)
        leases.acquire("its pid is somebody else's", SUBNET, bridge="br", pid=os.getpid(), netns=NETNS + 1)
        assert leases.stale(["listed"]) == ["dead", "its pid is somebody else's"]
        assert leases.others("alive")
        for name in ("dead", "listed", "its pid is somebody else's"):
            leases.release(name)
        assert not leases.others("alive") and leases.others("dead")
