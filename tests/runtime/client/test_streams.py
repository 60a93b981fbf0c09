"""Standard input and output, signals, and terminals of a container in the foreground."""

from __future__ import annotations

import hashlib
import os
import select
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.runtime.conftest import IMAGE, PATIENCE, Runtime, Terminal, kill, wait_until
from tests.runtime.containers import LOOP, children, ended_by, found, start

RUN = ("run", "--rm", "--network=none")


def test_input_is_passed_on_when_asked_for(runtime: Runtime) -> None:
    assert runtime.run("-i", IMAGE, "cat", stdin="through\n") == "through\n"
    assert runtime.run(IMAGE, "cat", stdin="not through\n") == ""


def test_much_of_any_bytes_comes_through_whole(runtime: Runtime, tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000
    (tmp_path / "in").write_bytes(data)
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as sink:
        done = subprocess.run(runtime.command(*RUN, "-i", IMAGE, "cat"), stdin=source, stdout=sink, timeout=60)
    assert done.returncode == 0
    assert hashlib.sha256((tmp_path / "out").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_a_container_that_does_not_read_its_input(runtime: Runtime) -> None:
    assert runtime.run("-i", IMAGE, "echo", "done", stdin=b"x" * 10_000_000) == "done\n"
    assert runtime.run("-i", IMAGE, "sh", "-c", "exec <&-; sleep 0.1; echo done", stdin=b"x" * 1_000_000) == "done\n"


def test_a_reader_that_stops_reading(runtime: Runtime) -> None:
    """`| head -1`: the container is not killed by it, and is not kept from ending."""
    with runtime.popen(*RUN, IMAGE, "sh", "-c", "seq 100000; exit 7") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        process.stdout.close()
        assert process.wait() == 7


def test_a_slow_reader_slows_the_container(runtime: Runtime, tmp_path: Path) -> None:
    """Nobody reads: the container stands still in its write, and a signal comes through all the same."""
    script = "trap 'exit 9' TERM; (head -c 3m /dev/zero | tr '\\0' x; touch /data/all) & wait"
    with runtime.popen(*RUN, "-v", f"{tmp_path}:/data", IMAGE, "sh", "-c", script) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        time.sleep(0.5)  # that it does not go on has no event; all that could buffer the rest is full in less
        assert not (tmp_path / "all").exists()
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait() == 9
    assert not (tmp_path / "all").exists()


def test_what_a_container_logged_is_shown_much_at_a_time(runtime: Runtime) -> None:
    """A pipe that keeps each write by itself (pipe(2), O_DIRECT), a page at most, tells how many there were."""
    runtime("run", "-d", "--name", "writer", "--network=none", IMAGE, "sh", "-c", "seq 20000; echo end >&2; seq 9")
    lines = "".join(f"{number}\n" for number in [*range(1, 20_001), *range(1, 10)]).encode()
    try:
        runtime("logs", "-f", "writer")
        reader, writer = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        with runtime.popen("logs", "writer", stdout=writer) as process:
            os.close(writer)
            packets = list(iter(partial(os.read, reader, 1 << 16), b""))
            os.close(reader)
            assert process.stderr is not None
            assert process.stderr.read() == b"end\n"
            assert process.wait() == 0
        assert b"".join(packets) == lines
        assert len(packets) <= len(lines) // 4096 + 4
    finally:
        runtime("rm", "-f", "writer")


def test_ctrl_c_leaves_a_reader_that_never_reads(runtime: Runtime) -> None:
    with runtime.popen(*RUN, IMAGE, "sh", "-c", "head -c 200000 /dev/zero") as process:
        wait_until(lambda: os.listdir(runtime.state / "containers"), "it runs")
        wait_until(lambda: not os.listdir(runtime.state / "containers"), "it has ended")
        assert process.poll() is None
        # The first may still have gone to the task, on its way out.
        wait_until(lambda: ended_by(process, signal.SIGINT), "it ends")
        assert process.wait() == 130


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMAX],
)
def test_signals_are_passed_on(runtime: Runtime, number: signal.Signals) -> None:
    script = f"trap 'exit 42' {number:d}; echo ready; while :; do sleep 0.05; done"
    with runtime.popen(*RUN, IMAGE, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait() == 42


def test_a_signal_that_we_were_started_to_ignore(runtime: Runtime) -> None:
    """nohup."""
    command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *runtime.command(*RUN, "-i", IMAGE, "sh", "-c",
               "trap 'echo hung up' HUP; trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done")]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b""
        assert process.wait() == 5


def test_a_signal_that_the_first_process_does_not_handle_is_not_ours_to_die_of(runtime: Runtime) -> None:
    with runtime.popen(*RUN, "-i", IMAGE, "sh", "-c", "echo ready; read line; echo $line") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        process.stdin.write(b"still here\n")
        process.stdin.flush()
        assert process.stdout.read() == b"still here\n"
        assert process.wait() == 0


def test_a_terminal(runtime: Runtime, terminal: Callable[..., Terminal]) -> None:
    user = terminal(runtime.command(*RUN, "-it", IMAGE, "sh"), 33, 101)
    user.expect("# ")
    raw = user.mode()
    assert not raw[3] & (termios.ICANON | termios.ECHO | termios.ISIG)  # type: ignore[operator]
    user.type("tty; stty size; echo $TERM\n")
    shown = user.expect("xterm\r\n")
    assert "/dev/" in shown
    assert "33 101" in shown
    user.resize(44, 132)
    user.type("until stty size | grep '44 132'; do :; done\n")
    user.expect("\r\n44 132")
    user.type("exit 5\n")
    assert user.wait() == 5
    assert user.mode() == user.before


def test_ctrl_c_on_a_terminal_is_the_containers(runtime: Runtime, terminal: Callable[..., Terminal]) -> None:
    user = terminal(runtime.command(*RUN, "-it", IMAGE, "sh"))
    user.expect("# ")
    user.type("sleep 1000\n")
    user.expect("sleep 1000")
    wait_until(lambda: b"sleep" in _foreground(runtime), "sleep runs")
    user.type("\x03")
    user.expect("# ")
    user.type("echo $?; exit\n")
    user.expect("130")
    assert user.wait() == 0


def _foreground(runtime: Runtime) -> bytes:
    (container,) = runtime.ids()
    return runtime("exec", container, "ps").encode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_after_a_signal(
    runtime: Runtime, terminal: Callable[..., Terminal], number: signal.Signals
) -> None:
    script = f"trap 'exit 6' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    user = terminal(runtime.command(*RUN, "-it", IMAGE, "sh", "-c", script))
    user.expect("ready")
    assert user.mode() != user.before
    user.process.send_signal(number)
    assert user.wait() == 6
    assert user.mode() == user.before


def test_the_terminal_is_restored_when_the_task_dies(runtime: Runtime, terminal: Callable[..., Terminal]) -> None:
    user = terminal(runtime.command(*RUN, "-it", IMAGE, "sh"))
    user.expect("# ")
    (container,) = runtime.ids()
    os.kill(task_pid(runtime, container), signal.SIGKILL)
    assert user.wait() == 137
    assert user.mode() == user.before


def task_pid(runtime: Runtime, container: str) -> int:
    from runtime.engine.containers.store import ContainerStore
    from runtime.engine.paths import Paths

    return ContainerStore(Paths.of(str(runtime.root), str(runtime.state))).get(container).state().task_pid


def test_the_terminal_goes_away(runtime: Runtime, terminal: Callable[..., Terminal]) -> None:
    """The client has nothing to do any more; the container goes on, as when the client is killed."""
    user = terminal(runtime.command(*RUN, "--name=alone", "-it", IMAGE, "sh", "-c", "trap '' HUP; echo ready; cat"))
    user.expect("ready")
    user.hang_up()
    assert user.process.wait(PATIENCE) == 129
    assert runtime.status("alone").startswith("Up")
    runtime("rm", "-f", "alone")


def test_a_terminal_needs_one(runtime: Runtime) -> None:
    assert "not a terminal" in runtime.refused(*RUN, "-it", IMAGE, "sh", code=125)
    # Without -i nothing is read from it: this is for programs that colour their output.
    assert runtime.run("-t", IMAGE, "sh", "-c", "test -t 1 && echo yes") == "yes\r\n"


def test_output_before_the_end_is_all_there(runtime: Runtime) -> None:
    assert runtime.run("-t", IMAGE, "seq", "3000").split() == [str(n) for n in range(1, 3001)]


def test_closing_the_input_ends_what_reads_it(runtime: Runtime) -> None:
    process = runtime.popen(*RUN, "-i", IMAGE, "sh", "-c", "echo ready; cat >/dev/null; echo ended")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    out, _ = process.communicate(timeout=60)
    assert out == b"ended\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(runtime: Runtime, tmp_path: Path, closed: str) -> None:
    script = "cat; echo x; ls -l /proc/self/fd >/data/fds"
    command = shlex.join(runtime.command(*RUN, "-i", "-v", f"{tmp_path}:/data", IMAGE, "sh", "-c", script))
    shell = ["sh", "-c", f"{command} {closed}"]
    done = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout in (b"x\n", b"")
    assert (tmp_path / "fds").read_text().count("pipe:") == 2


def test_ctrl_c_while_it_starts(runtime: Runtime) -> None:
    """At any moment: either there never was a container, or it got the signal."""
    for delay in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        with runtime.popen(*RUN, IMAGE, "sh", "-c", "trap 'exit 0' INT; while :; do sleep 0.05; done") as process:
            time.sleep(delay)  # not to synchronise: to hit different moments
            process.send_signal(signal.SIGINT)
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:  # the shell had not set its trap: pid 1 does not get the signal then
                process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert runtime.ids() == []


_INTERRUPTED = """
import os, signal
from runtime.cli import command
from runtime.engine import frames
from runtime.engine.spawn import Task
original = Task.started
def started(task):
    original(task)
    while not any(b"ready" in frame.payload for frame in task.line.received):
        task.line.receive()
    os.kill(os.getpid(), signal.SIGINT)
Task.started = started
raise SystemExit(command(sys.argv[1:]))
"""


def test_ctrl_c_between_start_and_attach(runtime: Runtime) -> None:
    """It is the container's by then."""
    script = "trap 'exit 7' INT; echo ready; while :; do sleep 0.05; done"
    command = [sys.executable, "-c", f"import sys{_INTERRUPTED}", *runtime.command(*RUN, IMAGE, "sh", "-c", script)[3:]]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, b"ready\n"), done.stderr


def test_the_client_may_be_killed(runtime: Runtime) -> None:
    script = "echo ready; trap 'exit 0' TERM; while :; do sleep 0.05; done"
    process = runtime.popen(*RUN, "--name=orphan", IMAGE, "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    kill(process)
    assert runtime("exec", "orphan", "echo", "alive") == "alive\n"
    assert runtime("stop", "orphan") == "orphan\n"


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
    for child in children(found(runtime, name).state().task_pid):
        try:
            if word in Path(f"/proc/{child}/cmdline").read_bytes():
                return True
        except OSError:
            continue  # it has ended, and was collected
    return False
