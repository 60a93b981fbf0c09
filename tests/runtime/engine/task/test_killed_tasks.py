"""kill -9 of a task in each phase of its life: what it had of a container's root goes by itself, and nobody is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capabilities import missing
from tests.runtime.conftest import IMAGE, PATIENCE, Runtime, wait_until
from tests.runtime.containers import LOOP, found, kill_and_wait, start
from tests.runtime.engine.task import dying_task
from unionfs.linux.mounts import mountinfo

pytestmark = pytest.mark.needs("root")

_NEEDS = {"fuse-aufs": ("fuse",), "overlay2": ("overlay",), "btrfs": ("loop", "program:mkfs.btrfs"), "vfs": ()}
_OPTIONS = {"btrfs": ("--storage-opt", "btrfs.loopsize=512M")}

# A command with another program for its task.
_RUN = """
import sys
from runtime.engine import spawn
spawn._PROGRAM = sys.argv[1]
from runtime.cli import command
sys.exit(command(sys.argv[2:]))
"""

BEGINNING = [
    "runtime.engine.task.life.save",  # before anything
    "runtime.engine.task.life.open_tree",  # before the root file system
    "runtime.engine.containers.accounts.lookup",  # with it, and nobody in it
    "runtime.oci.parent:Birth.advance",  # with a child that makes itself the container
    "runtime.engine.task.life.keep",  # which is done with that
]
RECORDED = [
    "runtime.oci.container.start",  # the container has not begun
]
ENDING = [
    "runtime.engine.containers.release.processes",  # its first process has ended
    "runtime.engine.containers.release.endpoint",
    "drivers.mounts.tree:Tree.close",
    "runtime.engine.containers.container:Container.rest",  # nothing is held any more
]


@pytest.fixture(scope="module", params=list(_NEEDS))
def store(request: pytest.FixtureRequest, rootfs_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """An installation of its own on each driver that has something to lose in a different way."""
    for capability in _NEEDS[request.param]:
        if reason := missing(capability):
            pytest.skip(reason)
    place = tmp_path_factory.mktemp(request.param)
    runtime = Runtime(place / "root", place / "state", request.param)
    runtime("import", "-c", 'CMD ["sh"]', rootfs_tar, IMAGE)
    return runtime


@pytest.fixture
def gone(store: Runtime, deadline: None) -> Iterator[Runtime]:
    """After the test there is nothing of a container, and of the image no more than before it was first used."""
    store(*_OPTIONS.get(store.driver, ()), "run", "--rm", "--network=none", IMAGE, "true")
    yield store
    assert store("run", "--rm", "--network=none", "--name=lost", IMAGE, "echo", "free") == "free\n"
    assert store.ids() == []
    assert os.listdir(store.state / "containers") == []


def run_and_die(runtime: Runtime, call: str, *words: str) -> None:
    program = os.path.abspath(dying_task.__file__)
    command = [sys.executable, "-c", _RUN, program, *runtime.command("run", "--network=none", *words)[3:]]
    done = subprocess.run(
        command, env={**os.environ, dying_task.CALL: call}, capture_output=True, text=True, timeout=2 * PATIENCE
    )
    assert done.returncode == 137, done.stderr  # as of a container that was killed


def nothing_is_left(runtime: Runtime) -> None:
    """No process that serves, or has mounted, anything of the store: without a command of ours having been run."""
    place = str(runtime.root.parent)
    wait_until(lambda: not using(place), f"nobody uses {place}: {using(place)}")


def using(place: str) -> list[str]:
    """Of all processes: a container's are not descendants of ours any more, and have not our environment."""
    ours = os.stat("/proc/self/ns/mnt").st_ino
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if place in command:
                found.append(f"{pid}: {command}")
            elif os.stat(f"/proc/{pid}/ns/mnt").st_ino != ours:
                found += [f"{pid}: {point}" for point in mountinfo(pid) if place in str(point)]
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.parametrize("call", BEGINNING)
def test_before_it_is_recorded_as_running(gone: Runtime, call: str) -> None:
    """Nothing of it needs a command of ours to go."""
    run_and_die(gone, call, "--name=lost", IMAGE, "true")
    nothing_is_left(gone)
    assert gone.ids() == []


@pytest.mark.parametrize("call", RECORDED)
def test_when_it_is_recorded_as_running(gone: Runtime, call: str) -> None:
    """From here on it may have something to lose, and stays."""
    run_and_die(gone, call, "--name=lost", IMAGE, "true")
    assert gone.status("lost").startswith("Exited")
    nothing_is_left(gone)
    assert gone("rm", "lost") == "lost\n"


@pytest.mark.parametrize("call", ENDING)
def test_at_the_end(gone: Runtime, call: str) -> None:
    run_and_die(gone, call, "--name=lost", IMAGE, "sh", "-c", "echo kept >/kept")
    assert gone.status("lost").startswith("Exited")
    nothing_is_left(gone)
    assert gone("rm", "lost") == "lost\n"


def test_while_the_unions_server_starts(runtime: Runtime) -> None:
    run_and_die(runtime, "unionfs.transport.delivery.receive", "--name=lost", IMAGE, "true")
    nothing_is_left(runtime)
    assert runtime.ids() == []


def test_while_the_container_runs(gone: Runtime) -> None:
    start(gone, "lost", LOOP)
    kill_and_wait(found(gone, "lost").state().task_pid)
    assert gone.status("lost").startswith("Exited (137)")
    nothing_is_left(gone)
    assert gone("rm", "lost") == "lost\n"


def test_while_somebody_looks_at_the_container(gone: Runtime) -> None:
    """The reader goes on to its end, and what it reads goes after it."""
    start(gone, "lost", LOOP)
    with gone.popen("export", "lost") as export:
        assert export.stdout is not None
        export.stdout.read(512)
        kill_and_wait(found(gone, "lost").state().task_pid)
        assert gone.status("lost").startswith("Exited (137)")
        export.stdout.read()
        assert export.wait(PATIENCE) == 0
    nothing_is_left(gone)
    assert gone("rm", "lost") == "lost\n"


def test_the_store_is_given_back(store: Runtime, deadline: None) -> None:
    """Last: with its images it gives up what it has set up, a loop device say."""
    store("rmi", IMAGE)
    place = str(store.root.parent)
    assert [point.target for point in mountinfo() if point.target.startswith(place)] == []
    for name in os.listdir("/sys/block"):
        backing = Path(f"/sys/block/{name}/loop/backing_file")
        assert not (backing.exists() and backing.read_text().startswith(place)), name
