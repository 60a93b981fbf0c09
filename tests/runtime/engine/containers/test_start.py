"""A container that is at rest, and another process that starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from runtime.engine import frames, state
from runtime.engine.containers.container import Container
from runtime.engine.containers.recovery import recover
from runtime.engine.containers.start import start
from runtime.engine.installation import Installation
from runtime.engine.paths import Paths
from runtime.engine.spawn import Task
from runtime.engine.state import State, Status
from runtime.errors import CommandNotFound, StateError
from tests.runtime.conftest import IMAGE, Runtime, wait_until

pytestmark = pytest.mark.needs("root")

_CREATE = """
import sys
from runtime.engine.containers.create import create
from runtime.engine.containers.request import CreateRequest
from runtime.engine.installation import Installation
from runtime.engine.paths import Paths
from runtime.engine.storage.drivers import Storage
root, state, driver, remove, *command = sys.argv[1:]
request = CreateRequest(image="box", command=tuple(command), name="made", network="none", remove=bool(remove))
with Installation(Paths.of(root, state), Storage(driver, {})) as installation:
    create(installation, request, lambda news: None).leave()
"""


def created(runtime: Runtime, *command: str, remove: bool = False) -> Container:
    """A container that a process has created which has ended."""
    place = [str(runtime.root), str(runtime.state), runtime.driver, "x" if remove else ""]
    subprocess.run([sys.executable, "-c", _CREATE, *place, *command], check=True)
    return installation(runtime).containers.get("made")


def installation(runtime: Runtime) -> Installation:
    return Installation(Paths.of(str(runtime.root), str(runtime.state)))


def started(runtime: Runtime, container: Container) -> Task:
    with installation(runtime) as own:
        return start(own, container)


def outcome(task: Task) -> tuple[bytes, int]:
    """All that the container writes, and its exit code."""
    out, code = b"", None
    while code is None:
        for frame in task.line.received:
            if frame.kind == frames.OUT:
                out += frame.payload
            elif frame.kind == frames.EXIT:
                code = int(frame.json()["code"])
        task.line.received.clear()
        if code is None:
            assert task.line.receive(), "its task is gone"
    task.wait()
    return out, code


def test_created_by_one_process_and_started_by_another_again_and_again(each_driver: Runtime) -> None:
    runtime = each_driver
    container = created(runtime, "sh", "-c", "echo x >>/kept; cat /kept; exit 3")
    assert container.state() == State(Status.CREATED)
    assert runtime.status("made") == "Created"
    assert os.listdir(runtime.state / "containers") == []
    for times in (1, 2, 3):
        assert outcome(started(runtime, container)) == (b"x\n" * times, 3)
        assert runtime.status("made").startswith("Exited (3)")
    assert runtime("logs", "made") == "x\n" * 6
    assert runtime("rm", "made") == "made\n"


def test_one_that_runs_is_not_started(runtime: Runtime) -> None:
    container = created(runtime, "sleep", "600")
    task = started(runtime, container)
    with pytest.raises(StateError, match="the container made is running"):
        started(runtime, container)
    task.close()
    runtime("rm", "-f", "made")
    task.wait()


def test_one_that_cannot_be_started_rests_as_it_was(runtime: Runtime) -> None:
    container = created(runtime, "nope")
    for _ in range(2):
        with pytest.raises(CommandNotFound, match=r"^cannot run 'nope': not found in \$PATH$"):
            started(runtime, container)
        found = container.state()
        assert (found.status, found.exit_code) == (Status.CREATED, 127)
        assert found.error == "cannot run 'nope': not found in $PATH"
    runtime("rm", "made")


def test_one_that_removes_itself_is_gone_when_it_cannot_be_started(runtime: Runtime) -> None:
    container = created(runtime, "nope", remove=True)
    assert runtime.status("made") == "Created"
    with pytest.raises(CommandNotFound):
        started(runtime, container)
    assert runtime.ids() == []


@pytest.mark.parametrize("at_rest", [Status.CREATED, Status.EXITED])
def test_recovery_brings_back_what_was_at_rest(runtime: Runtime, at_rest: Status) -> None:
    """Its task died before it had it running."""
    container = created(runtime, "true")
    before = State(at_rest, exit_code=4, finished=1.0)
    state.keep(container.directory, before)
    os.mkdir(container.run_directory, 0o700)
    state.save(container.run_directory, before)
    with installation(runtime) as own:
        recover(own)
    assert container.state() == before
    assert not os.path.exists(container.run_directory)
    assert outcome(started(runtime, container)) == (b"", 0)
    runtime("rm", "made")


def test_a_record_of_a_version_before_is_no_reason_to_crash(runtime: Runtime) -> None:
    """What it had in the run directory is not understood: it has ended, as after a crash, and can be removed."""
    runtime("run", "--name=made", "--network=none", IMAGE, "true")
    container = installation(runtime).containers.get("made")
    state.keep(container.directory, State(Status.RUNNING, pid=os.getpid()))
    os.mkdir(container.run_directory, 0o700)
    for name in ("spec.json", "state.json"):
        with open(f"{container.run_directory}/{name}", "w") as file:
            file.write('{"status": "running"}')
    assert runtime.status("made").startswith("Exited (137)")
    assert runtime("rm", "made") == "made\n"


def test_what_a_record_of_a_version_before_has_running_is_killed(runtime: Runtime) -> None:
    """Its task is gone, and nothing here says its process: its control group does."""
    runtime("run", "-d", "--name=made", "--network=none", IMAGE, "sleep", "600")
    container = installation(runtime).containers.get("made")
    init, task = container.state().pid, container.state().task_pid
    os.kill(task, signal.SIGKILL)
    for name in ("spec.json", "state.json"):
        with open(f"{container.run_directory}/{name}", "w") as file:
            file.write('{"status": "running"}')
    assert runtime.status("made").startswith("Exited (137)")
    wait_until(lambda: not os.path.exists(f"/proc/{init}"), "its process has ended")
    assert runtime("rm", "made") == "made\n"
