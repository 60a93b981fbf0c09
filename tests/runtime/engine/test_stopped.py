"""Processes of ours that are stopped: whoever waits for one ends when told to, and says what did not answer."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.engine.containers import leaving
from runtime.errors import StateError
from runtime.oci.cgroups import Cgroup
from tests.runtime.conftest import PATIENCE, Runtime, wait_until

pytestmark = pytest.mark.needs("root", "fuse")


def processes_of(runtime: Runtime, word: str) -> list[int]:
    """Those whose command line has `word` and the installation's directory."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in line.split("\0") and str(runtime.root) in line:
            found.append(int(pid))
    return found


@pytest.fixture
def stopped(runtime: Runtime) -> Iterator[str]:
    """A container whose union's server is stopped, with its companion."""
    name = runtime("run", "-d", "--network=none", "box", "sleep", "600")
    servers = processes_of(runtime, "unionfs")
    try:
        for pid in servers:
            os.kill(pid, signal.SIGSTOP)
        yield name.strip()
    finally:
        for pid in servers:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
        runtime("rm", "-f", name.strip())


def test_exec_ends_when_it_is_told_to(runtime: Runtime, stopped: str) -> None:
    """And so does what it had begun in the container."""
    group = Cgroup(f"/fuse-aufs/{stopped}")
    with runtime.popen("exec", stopped, "/bin/nothing-of-that-name", stdin=subprocess.DEVNULL) as process:
        wait_until(lambda: any(map(is_stuck, group.pids())), "it waits in the container")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (128 + signal.SIGTERM, b"", b"")
    wait_until(lambda: not any(map(is_stuck, group.pids())), "its process has ended")


def is_stuck(pid: int) -> bool:
    """Whether it waits for a union's answer."""
    try:
        return "fuse_" in Path(f"/proc/{pid}/stack").read_text()
    except OSError:
        return False


def test_a_look_at_the_container_ends_when_it_is_told_to(runtime: Runtime, stopped: str) -> None:
    for words in (("diff",), ("export",), ("commit", "--pause=false")):
        with runtime.popen(*words, stopped, stdin=subprocess.DEVNULL) as process:
            wait_until(lambda: any(map(is_stuck, tasks(process.pid))), "it waits for the server")
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, err) == (128 + signal.SIGTERM, b"", b""), words


def tasks(pid: int) -> list[int]:
    try:
        return [int(task) for task in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


NO_ANSWER = "does not answer"
# The command line with some of the engine's numbers another.
_WITH = """
import sys
from importlib import import_module
module, numbers, value = sys.argv[1:4]
for name in numbers.split(","):
    setattr(import_module(module), name, float(value))
from runtime.cli import command
sys.exit(command(sys.argv[4:]))
"""


def test_what_does_not_answer_is_told_and_the_container_ends(runtime: Runtime, stopped: str) -> None:
    slow = "the command has not been started within 0.5 seconds: the container's file system does not answer"
    for module, verb, code, says in (("exec", "exec", 125, slow), ("trees", "export", 1, NO_ANSWER)):
        words = runtime.command(verb, stopped, *(["/bin/nothing-of-that-name"] if verb == "exec" else []))[3:]
        command = [sys.executable, "-c", _WITH, f"runtime.engine.containers.{module}", "_PATIENCE", "0.5", *words]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)
        assert done.returncode == code and done.stderr.endswith(f"{says}\n") and done.stderr.count("\n") == 1, done
    runtime("stop", "-t", "0", stopped)
    assert runtime("inspect", "-f", "{{.State.Status}}", stopped) == "exited\n"


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGCONT, 3, ""),
        (signal.SIGKILL, 137, "runtime: the process that kept the container is gone, and the container with it\n"),
    ],
)
def test_a_command_whose_task_is_late(runtime: Runtime, number: int, code: int, says: str) -> None:
    """It is stopped when the command ends; then it gets `number`. What is not known is not said to be known."""
    name = runtime("run", "-d", "--network=none", "box", "sleep", "600").strip()
    with runtime.popen("exec", "-i", name, "sh", "-c", "echo here; read line; exit 3") as client:
        assert client.stdout is not None and client.stdout.readline() == b"here\n"
        task = parent(runtime.pid(name))
        [command] = [pid for pid in children(task) if b"read line" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert client.stdin is not None
        os.kill(command, signal.SIGSTOP)
        client.stdin.write(b"\n")
        client.stdin.flush()
        wait_until(lambda: waits_in_its_input(command), "the line has come to it")
        os.kill(task, signal.SIGSTOP)
        os.kill(command, signal.SIGCONT)
        wait_until(lambda: has_ended(command), "the command has ended")
        os.kill(task, number)
        _, err = client.communicate(timeout=PATIENCE)
    assert (client.returncode, err.decode()) == (code, says)
    runtime("rm", "-f", name)


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_a_client_whose_task_does_not_hear_a_signal_ends_and_says_so(runtime: Runtime, verb: str) -> None:
    runtime("run", "-d", "--network=none", "--name=other", "box", "sleep", "600")
    name, *words = ("own", verb, "--network=none", "--name=own", "box") if verb == "run" else ("other", verb, "other")
    patient = [sys.executable, "-c", _WITH, "runtime.client.foreground", "_PATIENCE", "0.2"]
    command = [*patient, *runtime.command(*words, "sh", "-c", "echo here; sleep 600")[3:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdout is not None and client.stdout.readline() == b"here\n"
        task = parent(runtime.pid(name))
        os.kill(task, signal.SIGSTOP)
        try:
            client.send_signal(signal.SIGTERM)
            _, err = client.communicate(timeout=PATIENCE)
        finally:
            os.kill(task, signal.SIGCONT)
    unheard = "runtime: the process that keeps the container does not answer, and has not heard signal 15\n"
    assert (client.returncode, err.decode()) == (125, unheard)
    runtime("rm", "-f", *{"other", name})


def waits_in_its_input(pid: int) -> bool:
    """Whether there is something to be read from its standard input, a pipe."""
    with open(f"/proc/{pid}/fd/0", "rb") as pipe:
        return bool(select.select([pipe], [], [], 0)[0])


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def has_ended(pid: int) -> bool:
    """Though nobody has collected it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("words", [("run", "--rm"), ("run", "-d")], ids=" ".join)
def test_run_whose_task_is_stopped(runtime: Runtime, words: tuple[str, ...]) -> None:
    """What had been begun is taken back."""
    with runtime.popen(*words, "--network=none", "box", "sleep", "600", stdin=subprocess.DEVNULL) as process:
        wait_until(lambda: tasks_of(process.pid), "it has a task")
        for pid in tasks_of(process.pid):
            os.kill(pid, signal.SIGSTOP)
        wait_until(runtime.ids, "it has recorded the container")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert process.stderr is not None and process.stderr.read() == b""
    assert runtime.ids() == []


def tasks_of(client: int) -> list[int]:
    return [pid for pid in children(client) if b"engine/task" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_container_whose_task_is_stopped(runtime: Runtime) -> None:
    """Its processes do not go on, and what does not answer is named."""
    for words in (("stop", "-t", "0"), ("rm", "-f")):
        name = runtime("run", "-d", "--network=none", "--name=kept", "box", "sleep", "600").strip()
        init = runtime.pid(name)
        task = parent(init)
        os.kill(task, signal.SIGSTOP)
        try:
            command = [sys.executable, "-c", _WITH, "runtime.engine.containers.stop", "_ANSWER,_GIVING_BACK", "0.2"]
            done = subprocess.run(
                [*command, *runtime.command(*words, "kept")[3:]], capture_output=True, text=True, timeout=2 * PATIENCE
            )
            assert (done.returncode, done.stdout) == (1, ""), words
            assert done.stderr == "runtime: the process that keeps kept does not answer\n"
            assert has_ended(init), words
        finally:
            os.kill(task, signal.SIGCONT)
        wait_until(lambda: runtime.status("kept").startswith("Exited (137)"), "its task has recorded its end")
        runtime("rm", "kept")


# -- The waits themselves --


def test_what_does_not_answer_is_named() -> None:
    over = threading.Event()
    try:
        with pytest.raises(StateError, match=r"^the clock does not answer$"):
            leaving.within(0.01, "the clock", over.wait)
    finally:
        over.set()
    assert leaving.within(600.0, "the sum", lambda: 1 + 1) == 2
    with pytest.raises(FileNotFoundError):
        leaving.within(600.0, "the file", lambda: os.stat("/nothing of that name"))
