"""kill -9 of a task, a client, a creator or a remover: the next command takes back what was left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.engine.containers import release
from runtime.engine.containers import remove as removal
from runtime.engine.containers.recovery import recover
from runtime.engine.containers.stop import stop
from runtime.engine.installation import Installation
from runtime.engine.state import Status
from runtime.errors import ContainerError
from runtime.oci.cgroups import Cgroup
from tests.runtime.conftest import IMAGE, PATIENCE, Runtime, die_at, links, wait_until
from tests.runtime.containers import LOOP, alive, children, found, kill_and_wait, start


def test_task_killed(each_driver: Runtime) -> None:
    runtime = each_driver
    started = runtime("run", "-d", "--name=lost", IMAGE, "sh", "-c", LOOP).strip()
    state = found(runtime, "lost").state()
    kill_and_wait(state.task_pid)
    assert runtime.status("lost").startswith("Exited (137)")
    assert not alive(state.pid)
    assert links() == ["lo"]
    assert os.listdir(runtime.state / "containers") == []
    assert _cgroups(started) == []
    assert not _seeing(str(runtime.state / "containers" / started))
    assert runtime("rm", "lost") == "lost\n"


def test_task_of_one_that_removes_itself_killed(runtime: Runtime) -> None:
    start(runtime, "lost", LOOP, "--rm")
    kill_and_wait(found(runtime, "lost").state().task_pid)
    assert runtime.ids() == []


def test_task_killed_while_a_client_is_attached(runtime: Runtime) -> None:
    with runtime.popen("run", "--rm", "--name=lost", IMAGE, "sh", "-c", LOOP) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        kill_and_wait(found(runtime, "lost").state().task_pid)
        assert process.wait() == 137
        assert process.stderr.read().count(b"\n") == 1
    assert runtime.ids() == []
    assert links() == ["lo"]


def test_task_killed_while_others_wait_for_it(runtime: Runtime) -> None:
    start(runtime, "lost", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    with runtime.popen("stop", "-t", "-1", "lost") as stop, runtime.popen("logs", "-f", "lost") as follow:
        assert follow.stdout is not None
        assert follow.stdout.readline() == b"ready\n"
        kill_and_wait(found(runtime, "lost").state().task_pid)
        assert follow.wait() == 0
        assert stop.wait() == 0
    assert runtime.status("lost").startswith("Exited (137)")
    runtime("rm", "lost")


def test_a_container_killed_from_outside_is_just_one_that_ended(runtime: Runtime) -> None:
    start(runtime, "shot", LOOP)
    kill_and_wait(runtime.pid("shot"))
    wait_until(lambda: runtime.status("shot").startswith("Exited"), "its task has seen it")
    assert runtime.status("shot").startswith("Exited (137)")
    runtime("rm", "shot")


CREATING = [
    "runtime.engine.containers.store:ContainerStore._point",  # a directory and its lock, nothing else
    "runtime.engine.records.keep",  # everything but the record
    "drivers.disk.durable.sync_directory",  # the record under another name
    "drivers.graph.snapshotter:GraphSnapshotter.prepare",  # before the snapshot
    "drivers.graph.layout:Staging.publish",  # in the middle of it
    "runtime.engine.spawn:Task.order",  # before a task has its orders
]


@pytest.mark.parametrize("where", CREATING)
def test_creator_killed(runtime: Runtime, where: str) -> None:
    die_at(runtime, where, "run", "--rm", "--name=half", IMAGE, "true")
    assert runtime.ids() == []
    assert runtime("run", "--rm", "--name=half", "--network=none", IMAGE, "echo", "free") == "free\n"
    assert _snapshots(runtime) == []


REMOVING = [
    "drivers.graph.snapshotter:GraphSnapshotter.remove",
    "runtime.engine.containers.store:ContainerStore.drop",
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
    from drivers.catalog import open_driver

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


def _mounting(client: int) -> tuple[int, int] | None:
    """A client's task and the `unionfs mount` that it has begun, if there are both."""
    for task in children(client):
        for child in children(task):
            try:
                if b"unionfs" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                    return task, child
            except OSError:
                continue
    return None


def test_task_killed_before_the_union_is_mounted(runtime: Runtime) -> None:
    with runtime.popen("run", "--rm", "--name=lost", "--network=none", IMAGE, "true") as client:
        deadline = time.monotonic() + PATIENCE
        while (seen := _mounting(client.pid)) is None:
            assert time.monotonic() < deadline
        task, server = seen
        kill_and_wait(task)
        client.communicate()
        assert client.returncode == 137
    wait_until(lambda: not alive(server), "its server has found nobody to hand the mount to")
    assert runtime.ids() == []
    assert _snapshots(runtime) == []
    assert runtime.run("--name=lost", IMAGE, "echo", "free") == "free\n"


@pytest.mark.parametrize("left", [[], ["rootfs"], ["rootfs", "etc/hosts"]])
def test_what_is_left_of_the_run_directory_of_one_that_ended(runtime: Runtime, left: list[str]) -> None:
    """Its task was killed in its last breath, with the record already made."""
    runtime.call("run", "--name=ended", "--network=none", IMAGE, "sh", "-c", "exit 3")
    container = found(runtime, "ended")
    os.mkdir(container.run_directory)
    for name in left:
        os.makedirs(f"{container.run_directory}/{name}")
    assert runtime.status("ended").startswith("Exited (3)")
    assert os.listdir(runtime.state / "containers") == []
    runtime("rm", "ended")


@pytest.mark.needs("tmpfs")
def test_nothing_is_forgotten_that_is_still_mounted(runtime: Runtime) -> None:
    runtime("run", "--name=busy", "--network=none", IMAGE, "true")
    container = found(runtime, "busy")
    below = Path(container.run_directory, "etc")
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
    try:
        assert runtime.status("busy").startswith("Exited (0)")
        assert "mounted below" in runtime.refused("rm", "busy", code=1)
        assert runtime.ids() == [container.id]
    finally:
        subprocess.run(["umount", below], check=True)
    assert runtime("export", "busy")  # it is whole, and nobody removes it but who is asked to
    runtime("rm", "busy")


def test_creator_killed_before_its_task_takes_over(runtime: Runtime) -> None:
    die_at(runtime, "runtime.engine.spawn:Task.order", "run", "--rm", "--name=half", IMAGE, "true")
    assert runtime.ids() == []
    assert _snapshots(runtime) == []


@pytest.fixture
def own(installation: Runtime, tmp_path: Path) -> Iterator[Runtime]:
    """The image in an installation that goes with the test."""
    runtime = Runtime(tmp_path / "root", tmp_path / "state", "vfs")
    shutil.copytree(installation.root / "images", tmp_path / "root/images", symlinks=True)
    yield runtime
    left = runtime.ids()
    if left:
        runtime("rm", "-f", *left)


@pytest.mark.parametrize("remove", [False, True])
def test_reboot(own: Runtime, remove: bool) -> None:
    """No process of the container is left, nor anything below --state; the lease is."""
    own("run", "-d", "--name=ran", *(["--rm"] if remove else []), IMAGE, "sh", "-c", LOOP)
    state = found(own, "ran").state()
    run_directory = found(own, "ran").run_directory
    kill_and_wait(state.task_pid)
    from runtime.engine.containers import release

    release.processes(found(own, "ran"))
    shutil.rmtree(run_directory)
    assert links() != ["lo"]
    if remove:
        assert own.ids() == []
    else:
        assert own.status("ran").startswith("Exited (255)")
        assert own("rm", "ran") == "ran\n"
    assert links() == ["lo"]
    assert own.run("--name=ran", IMAGE, "echo", "free") == "free\n"


def test_what_has_a_log_has_run(runtime: Runtime) -> None:
    runtime("run", "--name=ran", "--network=none", IMAGE, "true")
    Path(found(runtime, "ran").directory, "state.json").unlink()
    assert runtime.status("ran").startswith("Exited (255)")
    assert runtime("rm", "ran") == "ran\n"
    assert _snapshots(runtime) == []


@pytest.mark.parametrize("remove", [False, True])
def test_what_cannot_be_killed_does_not_rest(
    vfs: Runtime, monkeypatch: pytest.MonkeyPatch, remove: bool
) -> None:
    """A process that waits in the kernel outlives its SIGKILL: it runs on, with all that it has."""
    start(vfs, "stuck", LOOP, *(["--rm"] if remove else []))
    container = found(vfs, "stuck")
    kill_and_wait(container.state().task_pid)

    def no_end(cgroup: Cgroup) -> None:
        raise ContainerError("it does not end")

    with Installation(container.paths) as installation, monkeypatch.context() as patched:
        patched.setattr(Cgroup, "kill", no_end)
        recover(installation)
        assert container.state().status is Status.RUNNING
        assert alive(container.state().pid)
        with pytest.raises(ContainerError, match=r"^it does not end$"):
            stop(installation, container, number=signal.SIGTERM, patience=0)
        for force in (False, True):
            with pytest.raises(ContainerError, match=r"^it does not end$"):
                removal.remove(installation, container, force=force, tell=print)
        assert container.state().status is Status.RUNNING
        with pytest.raises(ContainerError, match=r"^it does not end$"):
            release.discard_damaged(installation, container)
    pid = container.state().pid
    assert vfs.ids() == ([] if remove else [container.id])
    assert not alive(pid)
    if not remove:
        assert vfs.status("stuck").startswith("Exited (137)")
        vfs("rm", "stuck")


def test_a_driver_is_not_held_while_a_container_is_waited_for(vfs: Runtime) -> None:
    """Others would wait for what it holds, a lock or a pool."""
    vfs("run", "--name=first", "--network=none", IMAGE, "true")
    start(vfs, "second", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    held = str(vfs.root / "drivers")
    state = found(vfs, "second").state()
    os.kill(state.task_pid, signal.SIGSTOP)
    try:
        with vfs.popen("rm", "-f", "first", "second") as process:
            wait_until(lambda: process.poll() is not None or not alive(state.pid), "it has killed the second")
            assert process.poll() is None
            opened = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
            assert not [link for link in opened if link.startswith(held)]
            os.kill(state.task_pid, signal.SIGCONT)
            assert process.wait(PATIENCE) == 0
    finally:
        with suppress(ProcessLookupError):
            os.kill(state.task_pid, signal.SIGCONT)
