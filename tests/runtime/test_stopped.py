"""Processes of ours that are stopped: whoever waits for one ends when told to, and says what did not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.engine import waiting
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
    for module, verb, code, says in (("keeper", "exec", 125, slow), ("containers.trees", "export", 1, NO_ANSWER)):
        words = runtime.command(verb, stopped, *(["/bin/nothing-of-that-name"] if verb == "exec" else []))[3:]
        command = [sys.executable, "-c", _WITH, f"runtime.engine.{module}", "_PATIENCE", "0.5", *words]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)
        assert done.returncode == code and done.stderr.endswith(f"{says}\n") and done.stderr.count("\n") == 1, done
    runtime("stop", "-t", "0", stopped)
    assert runtime("inspect", "-f", "{{.State.Status}}", stopped) == "exited\n"


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGSTOP, 125, "how is not known: the process that kept it does not answer\n"),
        (signal.SIGKILL, 137, ""),
        (signal.SIGCONT, 3, ""),
    ],
)
def test_a_command_whose_keeper_is_late(runtime: Runtime, number: int, code: int, says: str) -> None:
    """It is stopped when the command ends; then it gets `number`. What is not known is not said to be known."""
    name = runtime("run", "-d", "--network=none", "box", "sleep", "600").strip()
    bound = ("_ANSWER", "0.1") if number == signal.SIGSTOP else ("_END", "0.001")
    words = runtime.command("exec", "-i", name, "sh", "-c", "echo here; read line; exit 3")[3:]
    command = [sys.executable, "-c", _WITH, "runtime.engine.keeper", *bound, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdout is not None and client.stdout.readline() == b"here\n"
        [keeper] = children(client.pid)
        [process] = children(keeper)
        os.kill(keeper, signal.SIGSTOP)
        assert client.stdin is not None
        client.stdin.write(b"\n")
        client.stdin.flush()
        wait_until(lambda: has_ended(process), "the command has ended")
        os.kill(keeper, number)
        _, err = client.communicate(timeout=PATIENCE)
    assert (client.returncode, err.decode()[-len(says) :] if says else err.decode()) == (code, says)
    assert not os.path.exists(f"/proc/{keeper}")
    runtime("rm", "-f", name)


def has_ended(pid: int) -> bool:
    """Though nobody has collected it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("words", [("run", "--rm"), ("run", "-d")], ids=" ".join)
def test_run_whose_shim_is_stopped(runtime: Runtime, words: tuple[str, ...]) -> None:
    """What had been begun is taken back."""
    with runtime.popen(*words, "--network=none", "box", "sleep", "600", stdin=subprocess.DEVNULL) as process:
        wait_until(lambda: shims(process.pid), "it has a shim")
        for pid in shims(process.pid):
            os.kill(pid, signal.SIGSTOP)
        wait_until(runtime.ids, "it has recorded the container")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        assert process.stderr is not None and process.stderr.read() == b""
    assert runtime.ids() == []


def shims(client: int) -> list[int]:
    return [pid for pid in children(client) if b"engine/shim" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_container_whose_shim_is_stopped(runtime: Runtime) -> None:
    """Its processes do not go on, and what does not answer is named."""
    for words in (("stop", "-t", "0"), ("rm", "-f")):
        name = runtime("run", "-d", "--network=none", "--name=kept", "box", "sleep", "600").strip()
        init = runtime.pid(name)
        shim = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(shim, signal.SIGSTOP)
        try:
            command = [sys.executable, "-c", _WITH, "runtime.engine.containers.stop", "_ANSWER,_GIVING_BACK", "0.2"]
            done = subprocess.run(
                [*command, *runtime.command(*words, "kept")[3:]], capture_output=True, text=True, timeout=2 * PATIENCE
            )
            assert (done.returncode, done.stdout) == (1, ""), words
            assert done.stderr == "runtime: the process that keeps kept does not answer\n"
            assert has_ended(init), words
        finally:
            os.kill(shim, signal.SIGCONT)
        wait_until(lambda: runtime.status("kept").startswith("Exited (137)"), "its shim has recorded its end")
        runtime("rm", "kept")


# -- The waits themselves --


def test_an_answer_and_signals_that_come_before_it() -> None:
    """They are kept for what they are for."""
    heard = []
    before = {number: signal.signal(number, lambda n, _: heard.append(n)) for number in (signal.SIGTERM, signal.SIGHUP)}
    reader, writer = os.pipe()
    try:
        assert not waiting.answered(reader, 0.01) and heard == []
        os.kill(os.getpid(), signal.SIGHUP)
        heard.clear()
        from runtime.engine.attach import held

        with held():
            os.kill(os.getpid(), signal.SIGTERM)
            started = time.monotonic()
            assert not waiting.answered(reader, 600.0)
            assert time.monotonic() - started < 300 and heard == []
            os.write(writer, b"x")
            assert waiting.answered(reader, 600.0) and heard == []
        assert heard == [signal.SIGTERM]
    finally:
        os.close(reader)
        os.close(writer)
        for number, handler in before.items():
            signal.signal(number, handler)


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
