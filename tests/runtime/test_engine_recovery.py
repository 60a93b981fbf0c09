"""kill -9 of a shim, a client, a creator or a remover: the next command takes back what was left."""

from __future__ import annotations

import os
import signal

import pytest

from runtime.engine.containers import Container, ContainerStore
from runtime.engine.paths import Paths
from tests.runtime.conftest import IMAGE, Runtime, die_at, links, wait_until
from tests.runtime.test_cli_lifecycle import LOOP, start

PIDFD_PATIENCE = 30.0


def found(runtime: Runtime, name: str) -> Container:
    return ContainerStore(Paths.of(str(runtime.root), str(runtime.state))).get(name)


def kill_and_wait(pid: int) -> None:
    import select

    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [], PIDFD_PATIENCE)
    os.close(pidfd)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_shim_killed(each_driver: Runtime) -> None:
    runtime = each_driver
    started = runtime("run", "-d", "--name=lost", IMAGE, "sh", "-c", LOOP).strip()
    state = found(runtime, "lost").state()
    kill_and_wait(state.shim_pid)
    assert runtime.status("lost").startswith("Exited (137)")
    assert not alive(state.pid)
    assert links() == ["lo"]
    assert os.listdir(runtime.state / "containers") == []
    assert _cgroups(started) == []
    assert not _seeing(str(runtime.state / "containers" / started))
    assert runtime("rm", "lost") == "lost\n"


def test_shim_of_one_that_removes_itself_killed(runtime: Runtime) -> None:
    start(runtime, "lost", LOOP, "--rm")
    kill_and_wait(found(runtime, "lost").state().shim_pid)
    assert runtime.ids() == []


def test_shim_killed_while_a_client_is_attached(runtime: Runtime) -> None:
    with runtime.popen("run", "--rm", "--name=lost", IMAGE, "sh", "-c", LOOP) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        kill_and_wait(found(runtime, "lost").state().shim_pid)
        assert process.wait() == 137
        assert process.stderr.read().count(b"\n") == 1
    assert runtime.ids() == []
    assert links() == ["lo"]


def test_shim_killed_while_others_wait_for_it(runtime: Runtime) -> None:
    start(runtime, "lost", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    with runtime.popen("stop", "-t", "-1", "lost") as stop, runtime.popen("logs", "-f", "lost") as follow:
        assert follow.stdout is not None
        assert follow.stdout.readline() == b"ready\n"
        kill_and_wait(found(runtime, "lost").state().shim_pid)
        assert follow.wait() == 0
        assert stop.wait() == 0
    assert runtime.status("lost").startswith("Exited (137)")
    runtime("rm", "lost")


def test_a_container_killed_from_outside_is_just_one_that_ended(runtime: Runtime) -> None:
    start(runtime, "shot", LOOP)
    kill_and_wait(runtime.pid("shot"))
    wait_until(lambda: runtime.status("shot").startswith("Exited"), "its shim has seen it")
    assert runtime.status("shot").startswith("Exited (137)")
    runtime("rm", "shot")


CREATING = [
    "runtime.engine.containers:ContainerStore._point",  # a directory and its lock, nothing else
    "runtime.engine.records.keep",  # everything but the record
    "drivers.durable.sync_directory",  # the record under another name
    "drivers.graph:GraphSnapshotter.prepare",  # before the snapshot
    "drivers.layout:Staging.publish",  # in the middle of it
    "runtime.engine.shim:Shim.order",  # before a shim has its orders
]


@pytest.mark.parametrize("where", CREATING)
def test_creator_killed(runtime: Runtime, where: str) -> None:
    die_at(runtime, where, "run", "--rm", "--name=half", IMAGE, "true")
    assert runtime.ids() == []
    assert runtime("run", "--rm", "--name=half", "--network=none", IMAGE, "echo", "free") == "free\n"
    assert _snapshots(runtime) == []


REMOVING = [
    "drivers.graph:GraphSnapshotter.remove",
    "runtime.engine.containers:ContainerStore.drop",
]


@pytest.mark.parametrize("where", REMOVING)
def test_remover_killed(runtime: Runtime, where: str) -> None:
    runtime("run", "--name=half", "--network=none", IMAGE, "true")
    die_at(runtime, where, "rm", "half")
    assert runtime.ids() == []
    assert _snapshots(runtime) == []
    assert sorted(os.listdir(runtime.root / "containers")) == [".lock", "names"]


def _snapshots(runtime: Runtime) -> list[str]:
    """What the driver has beside whole layers: keys, and directories that are nobody's."""
    from drivers.api import Kind
    from drivers.registry import open_driver

    driver = open_driver(runtime.driver, str(runtime.root / "drivers" / runtime.driver))
    try:
        keys = [info.name for info in driver.walk() if info.kind is not Kind.COMMITTED]
    finally:
        driver.close()
    names = os.listdir(runtime.root / "drivers" / runtime.driver / "snapshots")
    return keys + [name for name in names if not name.isdecimal() and name != "identity"]


def _cgroups(container_id: str) -> list[str]:
    return [directory for directory, _, _ in os.walk("/sys/fs/cgroup") if container_id in directory]


def _seeing(path: str) -> list[str]:
    """Processes in whose mount namespace something is mounted below `path`."""
    seeing = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as mounts:
                if path in mounts.read():
                    seeing.append(pid)
        except OSError:
            continue
    return seeing
