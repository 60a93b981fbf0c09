"""What a review found: states that a kill -9, a full disk or a power cut leaves, and what a container may do to us."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.conftest import IMAGE, PATIENCE, Runtime, die_at, links, wait_until
from tests.runtime.test_cli_lifecycle import LOOP, start
from tests.runtime.test_engine_recovery import _snapshots, alive, found, kill_and_wait


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _mounting(client: int) -> tuple[int, int] | None:
    """A client's shim and the `unionfs mount` that it has begun, if there are both."""
    for shim in _children(client):
        for child in _children(shim):
            try:
                if b"unionfs" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                    return shim, child
            except OSError:
                continue
    return None


def test_shim_killed_before_the_union_is_mounted(runtime: Runtime) -> None:
    with runtime.popen("run", "--rm", "--name=lost", "--network=none", IMAGE, "true") as client:
        deadline = time.monotonic() + PATIENCE
        while (seen := _mounting(client.pid)) is None:
            assert time.monotonic() < deadline
        shim, server = seen
        kill_and_wait(shim)
        client.communicate()
        assert client.returncode == 137
    wait_until(lambda: not alive(server), "its server has found nobody to hand the mount to")
    assert runtime.ids() == []
    assert _snapshots(runtime) == []
    assert runtime.run("--name=lost", IMAGE, "echo", "free") == "free\n"


def test_one_that_cannot_be_removed_leaves_the_others_alone(runtime: Runtime) -> None:
    runtime("run", "--name=held", "--network=none", IMAGE, "true")
    container = found(runtime, "held")
    die_at(runtime, "drivers.graph:GraphSnapshotter.remove", "rm", "held")
    (layer,) = _writable(runtime, container.id)
    holder = os.open(layer, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        start(runtime, "lost", LOOP)
        kill_and_wait(found(runtime, "lost").state().shim_pid)
        assert runtime.status("held") == "Removing"
        assert runtime.status("lost").startswith("Exited (137)")
        assert runtime.run(IMAGE, "echo", "works") == "works\n"
        assert "still writes" in runtime.refused("rm", "held", code=1)
        assert runtime.status("held").startswith("Exited (0)")  # nobody removes it later: it was told to have failed
    finally:
        os.close(holder)
    assert runtime("rm", "held", "lost") == "held\nlost\n"


def _writable(runtime: Runtime, key: str) -> list[str]:
    """The branch that the container's snapshot is."""
    from drivers.registry import open_driver

    driver = open_driver(runtime.driver, str(runtime.root / "drivers" / runtime.driver))
    try:
        (mount,) = driver.mounts(key)
    finally:
        driver.close()
    branches = ",".join(mount.options).removeprefix("br=").split(":")
    return [branch.removesuffix("=rw") for branch in branches if branch.endswith("=rw")]


@pytest.mark.parametrize("left", [[], ["rootfs"], ["rootfs", "etc/hosts"]])
def test_what_is_left_of_the_run_directory_of_one_that_ended(runtime: Runtime, left: list[str]) -> None:
    """Its shim was killed in its last breath, with the record already made."""
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


def test_creator_killed_before_its_shim_takes_over(runtime: Runtime) -> None:
    die_at(runtime, "runtime.engine.shim:Shim.order", "run", "--rm", "--name=half", IMAGE, "true")
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
    kill_and_wait(state.shim_pid)
    from runtime.engine import release

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


def test_accounts_are_read_from_files_only(runtime: Runtime) -> None:
    """Opening what is none has effects: a writer of a fifo goes on, a watchdog starts."""
    row = "app:x:7:7::/:/bin/sh"
    start(runtime, "odd", f"rm /etc/passwd; mkfifo /etc/passwd; (echo {row} >/etc/passwd; echo opened) & {LOOP}")
    assert "unable to find user app" in runtime.refused("exec", "-u", "app", "odd", "id", code=125)
    assert runtime("logs", "odd") == "ready\n"
    runtime("rm", "-f", "odd")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_exec_whose_output_nobody_reads_can_be_ended(runtime: Runtime, number: signal.Signals) -> None:
    start(runtime, "box", LOOP)
    with runtime.popen("exec", "box", "sh", "-c", "head -c 90000 /dev/zero; exit 3") as client:
        assert client.stdout is not None and select.select([client.stdout], [], [], PATIENCE)[0]
        wait_until(lambda: not _runs(runtime, "box", b"90000"), "its command has ended")
        runtime("exec", "box", "true")  # the task has seen that before: a signal until then was the command's
        client.send_signal(number)
        assert client.wait(PATIENCE) == 128 + number
    runtime("rm", "-f", "box")


def _runs(runtime: Runtime, name: str, word: bytes) -> bool:
    """Whether a child of the container's task has this in its command line."""
    task = found(runtime, name).state().shim_pid
    for child in _children(task):
        try:
            if word in Path(f"/proc/{child}/cmdline").read_bytes():
                return True
        except OSError:
            continue  # it has ended, and was collected
    return False


@pytest.fixture
def small(installation: Runtime, tmp_path: Path) -> Iterator[Runtime]:
    """An installation on a disk of 32 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], check=True)
    try:
        shutil.copytree(installation.root / "images", place / "images", symlinks=True)
        yield Runtime(place, tmp_path / "state", "overlay2")
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.needs("tmpfs", "overlay")
@pytest.mark.parametrize("remove", [False, True])
def test_a_full_disk(small: Runtime, remove: bool) -> None:
    """The command's exit code is told and kept, and the container can be removed, which is what makes space."""
    options = ["--network=none", "--name=full", *(["--rm"] if remove else [])]
    done = small.call("run", *options, IMAGE, "sh", "-c", "dd if=/dev/zero of=/fill bs=4k 2>/dev/null; exit 5")
    assert done.returncode == 5
    if not remove:
        assert small.status("full").startswith("Exited (5)")
        assert small("rm", "full") == "full\n"
    assert small.ids() == []
    assert small.run(IMAGE, "echo", "space") == "space\n"
