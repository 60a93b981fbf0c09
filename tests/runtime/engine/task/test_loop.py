"""Several clients and several processes of one task."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import cast

import pytest

from runtime.engine import frames
from runtime.engine.containers.container import Container
from runtime.engine.frames import Frame
from runtime.engine.line import Line
from runtime.engine.stdio import Ends
from runtime.engine.task.connection import BOUND, Connection
from runtime.engine.task.process import Process
from runtime.engine.watch import connect
from runtime.oci.process import Init
from tests.runtime.conftest import IMAGE, Runtime, wait_until
from tests.runtime.containers import found, start

pytestmark = pytest.mark.needs("root")

# Writes a line whenever it gets SIGUSR1, and ends with SIGTERM.
ASKED = "trap 'echo asked' USR1; trap 'echo end; exit 5' TERM; echo ready; while :; do sleep 0.02; done"


@pytest.fixture
def box(vfs: Runtime) -> Iterator[Container]:
    start(vfs, "box", ASKED)
    yield found(vfs, "box")
    vfs("rm", "-f", "box")


def line_to(container: Container, *sent: bytes) -> Line:
    line = connect(container)
    assert line is not None
    for frame in sent:
        assert line.send(frame)
    return line


def heard(line: Line, kind: int) -> Frame:
    """The next frame of that kind; the others before it are dropped."""
    while True:
        while line.received:
            frame = line.received.pop(0)
            if frame.kind == kind:
                return frame
        assert line.receive(), f"the end comes before a frame of kind {kind}"


def added(container: Container, *args: str, stdin: bool = False, terminal: bool = False) -> tuple[Line, int]:
    """A process that was added, and the line to it."""
    process = {"args": list(args), "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "terminal": terminal}
    line = line_to(container, frames.pack_json(frames.EXEC, {"process": process, "stdin": stdin}))
    return line, heard(line, frames.STARTED).process


def is_full(line: Line) -> bool:
    """Whether a socket that nobody reads has come to hold what it holds at most: it grows no more."""
    held = waiting(line)
    time.sleep(0.05)
    return 0 < held == waiting(line)


def waiting(line: Line) -> int:
    """The bytes that wait in it to be read (unix(7), SIOCINQ)."""
    return int.from_bytes(fcntl.ioctl(line.sock, termios.FIONREAD, bytes(4)), sys.byteorder)


def until(line: Line, text: bytes) -> bytes:
    out = b""
    while text not in out:
        out += heard(line, frames.OUT).payload
    return out


def test_several_are_attached_to_one_process(box: Container) -> None:
    lines = [line_to(box, frames.pack(frames.ATTACH)) for _ in range(3)]
    waiter = line_to(box, frames.pack(frames.WAIT))
    for line in lines:
        assert heard(line, frames.STARTED).process == 0
    lines[0].send(frames.pack_number(frames.SIGNAL, signal.SIGUSR1))
    assert [heard(line, frames.OUT).payload for line in lines] == [b"asked\n"] * 3
    lines.pop().close()
    lines[0].send(frames.pack_number(frames.SIGNAL, signal.SIGTERM))
    for line in lines:
        assert until(line, b"end\n") == b"end\n"
    for line in (*lines, waiter):
        assert heard(line, frames.EXIT).json() == {"code": 5, "trouble": ""}
        assert not line.receive()
        line.close()


def test_processes_have_numbers_and_their_own_streams(box: Container) -> None:
    first, one = added(box, "cat", stdin=True)
    second, two = added(box, "cat", stdin=True)
    assert 0 < one < two
    first.send(frames.pack(frames.IN, b"to the first\n", process=one))
    second.send(frames.pack(frames.IN, b"to the second\n", process=two))
    assert heard(second, frames.OUT) == Frame(frames.OUT, b"to the second\n", two)
    assert heard(first, frames.OUT) == Frame(frames.OUT, b"to the first\n", one)
    looker = line_to(box, frames.pack(frames.ATTACH, process=two), frames.pack(frames.WAIT, process=two))
    assert heard(looker, frames.STARTED).process == two
    second.send(frames.pack(frames.IN_END, process=two))
    first.send(frames.pack_number(frames.SIGNAL, signal.SIGKILL, process=one))
    assert heard(first, frames.EXIT).json()["code"] == 137
    for line in (second, looker):
        assert heard(line, frames.EXIT).json()["code"] == 0
    looker.send(frames.pack(frames.ATTACH, process=two))
    assert heard(looker, frames.FAULT).json() == {
        "fault": "StateError", "message": f"there is no process {two} in the container",
    }  # fmt: skip
    for line in (first, second, looker):
        line.close()


def test_the_last_output_and_the_code_both_arrive(box: Container) -> None:
    for _ in range(30):
        line, number = added(box, "sh", "-c", "echo first; echo last; exit 7")
        assert until(line, b"last\n") == b"first\nlast\n"
        assert heard(line, frames.EXIT) == Frame(frames.EXIT, b'{"code":7,"trouble":""}', number)
        assert not line.receive()
        line.close()


def test_the_last_of_an_added_process_outlasts_its_container(box: Container, vfs: Runtime) -> None:
    """Its client reads nothing until everything is given back, which does not wait for that."""
    line, _ = added(box, "sh", "-c", "yes")
    with line:
        wait_until(lambda: is_full(line), "nothing more goes into its socket")
        vfs("stop", "-t", "0", "box")
        assert vfs.status("box").startswith("Exited (")
        assert heard(line, frames.EXIT).json()["code"] == 137


def test_an_attached_client_that_reads_nothing_is_hung_up_on_and_slows_nobody(vfs: Runtime) -> None:
    vfs("run", "-d", "--network=none", "--name=writer", IMAGE, "sh", "-c",
        "until test -e /go; do sleep 0.02; done; head -c 8m /dev/zero | tr '\\0' '\\n'; exit 4")  # fmt: skip
    container = found(vfs, "writer")
    stopped, reader = (line_to(container, frames.pack(frames.ATTACH)) for _ in range(2))
    for line in (stopped, reader):
        heard(line, frames.STARTED)
    vfs("exec", "writer", "touch", "/go")
    while not reader.received or reader.received[-1].kind != frames.EXIT:
        assert reader.receive(), "the one that reads is hung up on"
    assert reader.received[-1].json()["code"] == 4
    assert sum(len(frame.payload) for frame in reader.received if frame.kind == frames.OUT) == 8 << 20
    kinds = []
    with suppress(ConnectionError):
        while stopped.receive():
            kinds += [frame.kind for frame in stopped.received]
            stopped.received.clear()
    assert frames.EXIT not in kinds
    for line in (stopped, reader):
        line.close()
    vfs("rm", "writer")


def test_a_client_that_is_gone_takes_the_input_and_not_the_process(box: Container, vfs: Runtime) -> None:
    line, _ = added(box, "sh", "-c", "cat; touch /ended; sleep 600", stdin=True)
    line.close()
    wait_until(lambda: vfs.call("exec", "box", "test", "-e", "/ended").returncode == 0, "its input has ended")
    assert "sleep 600" in vfs("exec", "box", "ps")


def test_a_client_that_goes_before_its_process_runs(box: Container, vfs: Runtime) -> None:
    """In a container that stands still, whoever joins stands still with it; the task does not."""
    from runtime.oci.cgroups import Cgroup

    task = box.state().task_pid
    before = children(task)
    group = Cgroup(box.config.spec["linux"]["cgroupsPath"])
    process = {"args": ["touch", "/ran"], "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
    group.freeze(True)
    try:
        wait_until(group.is_frozen, "it stands still")
        line = line_to(box, frames.pack_json(frames.EXEC, {"process": process}))
        wait_until(lambda: children(task) != before, "a process is on its way")
        look = connect(box)
        assert look is not None
        with look:
            fd = look.look(20)
            assert fd is not None
            os.close(fd)
        line.close()
    finally:
        group.freeze(False)
    wait_until(lambda: children(task) == before, "it is given up, and collected")
    assert vfs.call("exec", "box", "test", "-e", "/ran").returncode == 1


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_an_exec_that_waits_in_a_container_that_stands_still_goes_on_with_it(box: Container) -> None:
    from runtime.oci.cgroups import Cgroup

    group = Cgroup(box.config.spec["linux"]["cgroupsPath"])
    process = {"args": ["echo", "went on"], "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
    group.freeze(True)
    try:
        wait_until(group.is_frozen, "it stands still")
        line = line_to(box, frames.pack_json(frames.EXEC, {"process": process}))
    finally:
        group.freeze(False)
    with line:
        heard(line, frames.STARTED)
        assert until(line, b"\n") == b"went on\n"
        assert heard(line, frames.EXIT).json()["code"] == 0


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (b"{", "RuntimeFault"), (b"[]", "ConfigError"), (b'{"process": {}}', "ConfigError"),
        (b'{"process": {"args": ["true"], "cwd": "x"}}', "ConfigError"),
        (b'{"process": {"args": ["nope"], "cwd": "/"}}', "CommandNotFound"),
        (b'{"process": {"args": ["/etc"], "cwd": "/"}}', "CommandNotExecutable"),
        (b'{"process": {"args": ["true"], "cwd": "/none"}}', "ContainerError"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_told_and_the_line_goes_on(box: Container, payload: bytes, fault: str) -> None:
    before = children(box.state().task_pid)
    with line_to(box, frames.pack(frames.EXEC, payload)) as line:
        assert heard(line, frames.FAULT).json()["fault"] == fault
        line.send(frames.pack(frames.ATTACH))
        assert heard(line, frames.STARTED).process == 0
    wait_until(lambda: children(box.state().task_pid) == before, "nothing of it is left")


def test_a_terminal_of_an_added_process(box: Container) -> None:
    line, number = added(box, "sh", "-c", "read line; stty size; echo got $line; exit 3", stdin=True, terminal=True)
    with line:
        line.send(frames.pack_window(31, 97, process=number))
        line.send(frames.pack(frames.IN, b"typed\r", process=number))
        out = until(line, b"got typed\r\n")
        assert b"31 97\r\n" in out
        assert heard(line, frames.EXIT).json()["code"] == 3


def test_clients_that_go_at_once(box: Container, vfs: Runtime) -> None:
    """Whoever hears of one that has gone may have gone itself: here those whose input waits with its."""
    line, number = added(box, "sh", "-c", "sleep 600", stdin=True)
    others = [line_to(box, frames.pack(frames.ATTACH, process=number)) for _ in range(3)]
    for one in others:
        heard(one, frames.STARTED)
    for one in (line, *others):
        one.send(frames.pack(frames.IN, b"x" * frames.CHUNK, process=number))
    task = box.state().task_pid
    os.kill(task, signal.SIGSTOP)
    for one in (line, *others):
        one.close()
    os.kill(task, signal.SIGCONT)
    assert vfs("exec", "box", "echo", "on") == "on\n"


def test_nonsense_is_its_senders_affair_alone(box: Container, vfs: Runtime) -> None:
    for nonsense in (b"\xff" * 64, frames.pack(frames.SIGNAL, b"x"), frames.pack(frames.RESIZE), frames.pack(99)):
        with line_to(box, nonsense) as line:
            line.sock.shutdown(socket.SHUT_WR)
            while line.receive():
                pass
    assert vfs("exec", "box", "echo", "on") == "on\n"


def test_a_follower_is_told_at_once_and_then_of_growth(box: Container, vfs: Runtime) -> None:
    watch = connect(box, follow=True)
    assert watch is not None
    with watch:
        assert watch.news(time.monotonic() + 20)
        watch.signal(signal.SIGUSR1)
        assert watch.news(time.monotonic() + 20)
        assert vfs("logs", "box").endswith("asked\n")


def test_the_bound_of_what_waits_for_an_attached_client() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours)
        while connection.sock is not None:
            connection.offer(bytes(frames.CHUNK))
            assert len(connection.outbox) <= BOUND


# Makes a child of whoever started it, which is not in the container, late; it ends a moment later.
_A_SIBLING = """
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    sleep(1);
    if (syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0) == 0)
        usleep(300000);
    return 0;
}
"""

# Has its child trace it, and ends: a zombie that its parent cannot collect until the tracer has gone.
_TRACED = """
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <unistd.h>
int main(void) {
    int go[2];
    char byte;
    pipe(go);
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    if (fork() == 0) {
        ptrace(PTRACE_SEIZE, getppid(), 0, 0);
        write(go[1], "x", 1);
        for (;;)
            pause();
    }
    read(go[0], &byte, 1);
    return 3;
}
"""


@pytest.fixture
def with_program(vfs: Runtime, compiled: Callable[[str], str]) -> Iterator[Callable[[str], Container]]:
    def make(text: str) -> Container:
        start(vfs, "box", ASKED, "-v", f"{compiled(text)}:/program:ro")
        return found(vfs, "box")

    yield make
    vfs("rm", "-f", "box")


def test_a_child_that_a_process_has_given_to_the_task_does_not_keep_the_container(
    with_program: Callable[[str], Container], vfs: Runtime
) -> None:
    """clone(2), CLONE_PARENT: pid 1 may not, an added process may. It is collected when it has ended."""
    container = with_program(_A_SIBLING)
    before = children(container.state().task_pid)
    line, _ = added(container, "/program")
    assert heard(line, frames.EXIT).json()["code"] == 0
    line.close()
    wait_until(lambda: children(container.state().task_pid) == before, "it is collected")
    assert vfs("stop", "-t", "20", "box") == "box\n"


def test_a_traced_zombie_does_not_stop_the_task(with_program: Callable[[str], Container], vfs: Runtime) -> None:
    """Its end is not told while its tracer lives: not even the one that waits for it is to wait in the kernel."""
    container = with_program(_TRACED)
    line, _ = added(container, "/program")
    with closing(line_to(container, frames.pack(frames.WAIT))) as other:
        other_line, _ = added(container, "true")
        assert heard(other_line, frames.EXIT).json()["code"] == 0
        other_line.close()
        assert vfs("exec", "box", "echo", "goes on") == "goes on\n"
        assert vfs("stop", "-t", "20", "box") == "box\n"
        assert heard(other, frames.EXIT).json()["code"] == 5
    line.close()


def test_a_client_for_whom_there_is_no_descriptor_waits_and_nothing_spins(box: Container) -> None:
    task = box.state().task_pid
    with closing(line_to(box, frames.pack(frames.ATTACH))) as first:
        heard(first, frames.STARTED)
        opened = set(map(int, os.listdir(f"/proc/{task}/fd")))
        _, hard = resource.prlimit(task, resource.RLIMIT_NOFILE)
        resource.prlimit(task, resource.RLIMIT_NOFILE, (min(set(range(hard)) - opened), hard))
        with closing(line_to(box, frames.pack(frames.ATTACH))) as second:
            first.send(frames.pack_number(frames.SIGNAL, signal.SIGUSR1))
            assert heard(first, frames.OUT).payload == b"asked\n"
            before = spent(task)
            assert not select.select([second.sock], [], [], 1.0)[0]
            assert spent(task) - before < 0.1
            first.close()
            assert heard(second, frames.STARTED).process == 0


def spent(pid: int) -> float:
    """The seconds that a process has had of a CPU (proc(5), /proc/PID/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("options", [(), ("-t",)])
def test_who_writes_on_into_the_output_of_one_that_has_ended_does_not_keep_it(
    vfs: Runtime, options: tuple[str, ...]
) -> None:
    """A process outside may have been given an end of it, as over a socket in a volume."""
    start(vfs, "box", ASKED, *options)
    with open(f"/proc/{vfs.pid('box')}/fd/1", "wb") as out, subprocess.Popen(["yes"], stdout=out) as elsewhere:
        try:
            assert vfs("stop", "-t", "20", "box") == "box\n"
            assert vfs.status("box").startswith("Exited (5)")
        finally:
            elsewhere.kill()
            vfs("rm", "-f", "box")


def test_the_last_of_a_process_is_no_more_than_its_pipe_holds() -> None:
    """Here the one who has another end of it writes again before each time that it is read."""
    out, elsewhere = os.pipe()
    holds = fcntl.fcntl(out, fcntl.F_GETPIPE_SZ)
    taken = 0

    def log(stream: str, data: bytes) -> None:
        nonlocal taken
        taken += len(data)
        assert taken <= 2 * holds
        os.write(elsewhere, data)

    ours, theirs = socket.socketpair()
    init = cast(Init, None)  # which it has no need of
    with ours, theirs, open(elsewhere, "wb"):
        process = Process(1, init, Ends(stdout=out), Connection(ours), log)
        os.write(elsewhere, bytes(1 << 12))
        process.finish()
    assert taken == holds


def test_all_that_a_process_has_written_is_passed_on_however_much_its_pipe_holds(
    with_program: Callable[[str], Container]
) -> None:
    line, _ = added(with_program(_A_LARGE_PIPE), "/program")
    with closing(line):
        out = 0
        while True:
            for frame in line.received:
                out += len(frame.payload) if frame.kind == frames.OUT else 0
                if frame.kind == frames.EXIT:
                    assert out == 1 << 20
                    return
            line.received.clear()
            assert line.receive()


# Fills a pipe that it has made larger, at once.
_A_LARGE_PIPE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <unistd.h>
static char text[1 << 20];
int main(void) {
    if (fcntl(1, F_SETPIPE_SZ, sizeof text) < 0)
        return 1;
    return write(1, text, sizeof text) != sizeof text;
}
"""
