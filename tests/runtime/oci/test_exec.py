"""Added processes of a running container."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import CommandNotExecutable, CommandNotFound, ContainerError
from runtime.oci import defaults
from tests.runtime.oci.conftest import Config, process
from tests.runtime.oci.keeper import Box, Keeper, Result

pytestmark = pytest.mark.needs("root")

Make = Callable[..., Config]


@pytest.fixture
def running(keeper: Keeper, config: Make) -> Iterator[Box]:
    box = keeper.create(config("sleep", "1000")).start()
    yield box
    box.signal(signal.SIGKILL)
    box.wait()
    box.delete()


def _exec(box: Box, *args: str, **changes: Any) -> Result:
    return box.exec({**process(*args), **changes}).start().wait()


def test_it_is_in_every_namespace_of_the_container(running: Box) -> None:
    kinds = {"mnt", "pid", "net", "uts", "ipc", "cgroup", "user"}
    out = _exec(running, "sh", "-c", "for n in mnt pid net uts ipc cgroup user; do readlink /proc/self/ns/$n; done").out
    assert set(out.split()) == {os.readlink(f"/proc/{running.pid}/ns/{kind}") for kind in kinds}


def test_it_is_in_every_cgroup_of_the_container(running: Box) -> None:
    out = _exec(running, "cat", "/proc/self/cgroup").out
    assert {line.rpartition(":")[2] for line in out.splitlines()} == {"/"}
    added = running.exec(process("sleep", "1000")).start()
    with open(f"/proc/{added.pid}/cgroup", encoding="ascii") as theirs, open(f"/proc/{running.pid}/cgroup") as first:
        assert theirs.read() == first.read()
    added.signal(signal.SIGTERM)
    assert added.wait().code == 143


def test_it_has_its_own_user_limits_and_no_more_capabilities(running: Box) -> None:
    out = _exec(running, "sh", "-c", "id -u; pwd; echo $A; grep Cap /proc/self/status; ls /proc/$$/fd; true",
                user={"uid": 7, "gid": 7}, cwd="/etc", env=[f"PATH={defaults.PATH}", "A=1"]).out.split()  # fmt: skip
    assert out[:3] == ["7", "/etc", "1"]
    assert dict(zip(out[3:13:2], out[4:13:2], strict=True)) == {
        "CapInh:": "0" * 16, "CapPrm:": "0" * 16, "CapEff:": "0" * 16, "CapBnd:": "00000000a80425fb",
        "CapAmb:": "0" * 16,
    }  # fmt: skip
    assert out[13:] == ["0", "1", "2"]


def test_root_of_the_exec_has_no_inheritable_capabilities(running: Box) -> None:
    """CVE-2022-27650."""
    out = _exec(running, "grep", "-E", "Cap(Inh|Amb)", "/proc/self/status").out
    assert out.split() == ["CapInh:", "0" * 16, "CapAmb:", "0" * 16]


def test_exit_codes_and_missing_commands(running: Box) -> None:
    assert _exec(running, "sh", "-c", "exit 9").code == 9
    assert _exec(running, "sh", "-c", "kill -9 $$").code == 137
    with pytest.raises(CommandNotFound, match="cannot run 'nope': not found in"):
        _exec(running, "nope")
    with pytest.raises(CommandNotExecutable, match="cannot run '/etc': is a directory"):
        _exec(running, "/etc")
    with pytest.raises(ContainerError, match=r"^cannot enter the working directory /none: No such file"):
        _exec(running, "true", cwd="/none")


def test_it_cannot_be_traced_while_it_joins(running: Box) -> None:
    """CVE-2016-9962: until its execve it is not dumpable, so that its descriptors and its memory are closed even to
    the container's root, which has the same user id and the same capabilities."""
    waiting = running.exec(process("sleep", "1000"))
    assert sorted(os.listdir(f"/proc/{waiting.pid}/fd")) == ["0", "1", "2", "3"]
    assert os.readlink(f"/proc/{waiting.pid}/fd/3").startswith("socket:")
    with open(f"/proc/{waiting.pid}/status", encoding="ascii") as status:
        there = next(line.split()[-1] for line in status if line.startswith("NSpid"))
    look = f"cat /proc/{there}/environ"
    assert "Permission denied" in _exec(running, "sh", "-c", look).out
    # Anybody may read this one.
    assert _exec(running, "cat", f"/proc/{there}/cmdline").out.strip("\0") == ""
    with open(f"/proc/{waiting.pid}/cmdline", "rb") as own, open(f"/proc/{waiting.pid}/environ", "rb") as environ:
        assert (own.read() + environ.read()).strip(b"\0") == b""
    waiting.start()
    assert _exec(running, "sh", "-c", look).out == f"PATH={defaults.PATH}\0"
    waiting.signal(signal.SIGKILL)
    waiting.wait()


def test_nor_by_its_user_where_the_machine_lets_users_dump(running: Box) -> None:
    """fs.suid_dumpable=1 makes a process that changes its user one that this user may trace (proc(5))."""
    setting = Path("/proc/sys/fs/suid_dumpable")
    before = setting.read_text()
    try:
        setting.write_text("1")
    except OSError as error:
        pytest.skip(f"fs.suid_dumpable cannot be set: {error.strerror}")
    try:
        user = {"uid": 1000, "gid": 1000}
        waiting = running.exec({**process("true"), "user": user, "capabilities": {}})
    finally:
        setting.write_text(before)
    with open(f"/proc/{waiting.pid}/status", encoding="ascii") as status:
        there = next(line.split()[-1] for line in status if line.startswith("NSpid"))
    assert "Permission denied" in _exec(running, "cat", f"/proc/{there}/environ", user=user).out
    assert waiting.start().wait().code == 0


def test_waiting_for_the_container_collects_added_processes(keeper: Keeper, config: Make) -> None:
    """Its first process does not end before they are collected, and nobody else would do it."""
    box = keeper.create(config("sleep", "1000")).start()
    added = box.exec(process("sleep", "1000")).start()
    box.delete()
    assert box.wait().code == 137
    assert added.wait().code == 137


def test_a_container_that_has_ended(keeper: Keeper, config: Make, running: Box) -> None:
    ended = keeper.create(config("true")).start()
    number = ended.pid
    ended.wait()
    with pytest.raises(ContainerError, match=f"^the container's process {number} has ended$"):
        ended.exec(process("true"))
    ended.delete()


def test_with_the_hosts_network_it_stays_there(keeper: Keeper, config: Make) -> None:
    left = [{"type": kind} for kind in defaults.NAMESPACES if kind != "network"]
    box = keeper.create(config("sleep", "1000", linux__namespaces=left)).start()
    assert _exec(box, "readlink", "/proc/self/ns/net").out.strip() == os.readlink("/proc/self/ns/net")
    box.signal(signal.SIGKILL)
    box.wait()
    box.delete()


def test_delete_ends_it(keeper: Keeper, config: Make) -> None:
    box = keeper.create(config("sleep", "1000")).start()
    added = box.exec(process("sleep", "1000")).start()
    box.delete()
    assert added.wait().code == 137
    assert box.wait().code == 137
