"""ps, logs, stop, rm, exec, and the verbs that only tell."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.cli import logs
from runtime.engine.containers.logs import Entry
from runtime.engine.containers.store import ContainerStore
from runtime.engine.paths import Paths
from tests.runtime.conftest import IMAGE, Runtime, Terminal, wait_until
from tests.runtime.containers import LOOP, ended_by, start


def test_ps(runtime: Runtime) -> None:
    assert runtime("ps").split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"]
    started = start(runtime, "first", LOOP)
    runtime.call("run", "--name=second", "--network=none", IMAGE, "sh", "-c", "exit 3")
    assert runtime("ps", "-q") == f"{started[:12]}\n"
    titles, row = runtime("ps").splitlines()
    assert re.fullmatch(rf"{started[:12]}   {IMAGE} +\"sh -c trap 'exit 4'…\" +.* ago +Up .* +first", row)
    assert titles.index("IMAGE") == row.index(IMAGE)
    assert re.fullmatch(r"Exited \(3\) .* ago", runtime.status("second"))
    assert len(runtime("ps", "-aq").split()) == 2
    assert started in runtime("ps", "-a", "--no-trunc")
    assert runtime("stop", "first", "second") == "first\nsecond\n"
    assert re.fullmatch(r"Exited \(4\) .* ago", runtime.status("first"))
    assert runtime("rm", "first", "second") == "first\nsecond\n"


def test_logs(runtime: Runtime) -> None:
    script = "echo one; echo two >&2; printf 'th\\351ree'"
    runtime.call("run", "--name=talk", "--network=none", IMAGE, "sh", "-c", script)
    done = runtime.call("logs", "talk")
    assert (done.stdout, done.stderr) == ("one\nth\udce9ree", "two\n")
    assert runtime("logs", "--tail=1", "talk") == "th\udce9ree"
    assert runtime("logs", "--tail", "0", "talk") == ""
    assert runtime("logs", "--tail", "-1", "talk") == runtime("logs", "talk")
    assert runtime("logs", "-f", "talk") == "one\nth\udce9ree"
    runtime("rm", "talk")


def test_logs_of_a_damaged_log(runtime: Runtime) -> None:
    runtime.call("run", "--name=talk", "--network=none", IMAGE, "sh", "-c", "echo one; echo two")
    log = ContainerStore(Paths.of(str(runtime.root), str(runtime.state))).get("talk").log
    one, two = Path(log).read_bytes().splitlines(keepends=True)
    Path(log).write_bytes(one + b"\0\0\0\0 no line\n" + two)
    done = runtime.call("logs", "talk")
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n")
    assert done.stderr.startswith(f"runtime: {log}: ") and done.stderr.count("\n") == 1
    runtime("rm", "talk")


def test_what_was_read_of_a_log_is_shown_whatever_comes_then(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    def cut_short() -> Iterator[Entry]:
        yield Entry("stdout", b"out\n")
        yield Entry("stderr", b"one\n")
        yield Entry("stderr", b"two\n")
        raise SystemExit(128 + signal.SIGTERM)

    with pytest.raises(SystemExit):
        logs.show(cut_short())
    assert capfdbinary.readouterr() == (b"out\n", b"one\ntwo\n")


def test_logs_follow_to_the_end(runtime: Runtime, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    start(runtime, "talk", "echo ready; read line </data/go; echo $line; printf end", "-v", f"{tmp_path}:/data")
    with runtime.popen("logs", "-f", "talk") as follow:
        assert follow.stdout is not None
        assert follow.stdout.readline() == b"ready\n"
        (tmp_path / "go").write_text("more\n")
        assert follow.stdout.read() == b"more\nend"
        assert follow.wait() == 0
    runtime("rm", "talk")


def test_stop_asks_first(runtime: Runtime) -> None:
    start(runtime, "polite", LOOP)
    assert runtime("stop", "-t", "2147483647", "polite") == "polite\n"
    assert runtime.status("polite").startswith("Exited (4)")
    assert runtime("stop", "polite") == "polite\n"
    runtime("rm", "polite")


def test_stop_kills_what_does_not_listen(runtime: Runtime) -> None:
    start(runtime, "deaf", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    begun = time.monotonic()
    assert runtime("stop", "-t", "1", "deaf") == "deaf\n"
    assert time.monotonic() - begun > 1
    assert runtime.status("deaf").startswith("Exited (137)")
    runtime("rm", "deaf")


def test_rm(runtime: Runtime) -> None:
    started = start(runtime, "stays", LOOP)
    assert "running" in runtime.refused("rm", "stays", code=1)
    assert runtime.status("stays").startswith("Up")
    assert runtime("rm", "-f", started[:10]) == f"{started[:10]}\n"
    assert "No such container: stays" in runtime.refused("rm", "stays", code=1)


def test_rm_of_several_goes_on_after_one_that_is_not_there(runtime: Runtime) -> None:
    for name in ("one", "two"):
        runtime("run", "--network=none", f"--name={name}", IMAGE, "true")
    done = runtime.call("rm", "one", "nothing", "two")
    assert done.stdout == "one\ntwo\n"
    assert done.stderr == "runtime: No such container: nothing\n"
    assert done.returncode == 1


def test_rm_by_force_of_one_that_removes_itself(runtime: Runtime) -> None:
    start(runtime, "short", LOOP, "--rm")
    assert runtime("rm", "-f", "short") == "short\n"
    start(runtime, "short", LOOP, "--rm")
    assert runtime("stop", "short") == "short\n"


def test_removed_by_two_at_once(runtime: Runtime) -> None:
    start(runtime, "wanted", LOOP)
    removers = [runtime.popen("rm", "-f", "wanted") for _ in range(3)]
    results = [process.communicate() for process in removers]
    assert b"wanted\n" in [out for out, _ in results]
    assert runtime.ids() == [], results


def test_rm_waits_for_a_recovery_under_way(runtime: Runtime) -> None:
    runtime("run", "--name=wanted", "--network=none", IMAGE, "true")
    container = ContainerStore(Paths.of(str(runtime.root), str(runtime.state))).get("wanted")
    lock = container.lock()
    assert lock is not None
    with runtime.popen("rm", "wanted") as process:
        time.sleep(0.5)  # not to synchronise: it may come to the lock before or after
        os.close(lock)
        assert process.wait() == 0


def test_exec(runtime: Runtime) -> None:
    start(runtime, "host", LOOP, "-e", "A=1", "-w", "/tmp", "--hostname=hull", "-u", "app")
    assert runtime("exec", "host", "sh", "-c", "echo $A $HOSTNAME $HOME; pwd; id -u; cat /etc/hostname") == (
        "1 hull /home/app\n/tmp\n1000\nhull\n"
    )
    assert runtime("exec", "-e", "A=2", "-w", "/etc", "-u", "0", "host", "sh", "-c", "echo $A $HOME; pwd; id -u") == (
        "2 /root\n/etc\n0\n"
    )
    assert runtime("exec", "-i", "host", "cat", stdin="through") == "through"
    assert runtime("exec", "host", "cat", stdin="not through") == ""
    assert runtime.call("exec", "host", "sh", "-c", "echo err >&2; exit 9").returncode == 9
    assert runtime.call("exec", "host", "sh", "-c", "kill -9 $$").returncode == 137
    assert "nothing-like-this" in runtime.refused("exec", "host", "nothing-like-this", code=127)
    assert "/etc" in runtime.refused("exec", "-u", "0", "host", "/etc", code=126)
    # It is in the container's cgroups and namespaces, with no more capabilities than the container.
    look = "readlink /proc/self/ns/pid; cut -d: -f3 /proc/self/cgroup | uniq"
    own = os.readlink(f"/proc/{runtime.pid('host')}/ns/pid")
    assert runtime("exec", "-u", "0", "host", "sh", "-c", look) == f"{own}\n/\n"
    assert "a80425fb" in runtime("exec", "-u", "0", "host", "grep", "CapBnd", "/proc/self/status")
    runtime("rm", "-f", "host")
    assert "No such container" in runtime.refused("exec", "host", "true", code=1)


def test_exec_gives_no_descriptor_of_ours(runtime: Runtime, tmp_path: Path) -> None:
    """A process that has a descriptor of a host's file can open the file anew, to read what it was to write."""
    start(runtime, "host", LOOP)
    (tmp_path / "secret").write_text("of the host\n")
    script = "for fd in 0 1 2; do readlink /proc/self/fd/$fd; done"
    with open(tmp_path / "secret", "a+") as file, runtime.popen(
        "exec", "-i", "host", "sh", "-c", script, stdin=file, stdout=file, stderr=file
    ) as process:
        assert process.wait() == 0
    kinds = [line.partition(":")[0] for line in (tmp_path / "secret").read_text().splitlines()]
    assert kinds == ["of the host", "pipe", "pipe", "pipe"]
    runtime("rm", "-f", "host")


def test_exec_does_not_wait_for_what_it_leaves_running(runtime: Runtime) -> None:
    start(runtime, "host", LOOP)
    assert runtime("exec", "host", "sh", "-c", "sleep 1000 & echo started") == "started\n"
    counted = runtime("exec", "host", "sh", "-c", "yes >/dev/stderr & seq 5000")
    assert counted.split() == [str(n) for n in range(1, 5001)]
    data = "".join(f"{n}\n" for n in range(200_000))
    assert runtime("exec", "-i", "host", "cat", stdin=data) == data
    assert runtime("exec", "-i", "host", "echo", "x", stdin=data) == "x\n"
    runtime("rm", "-f", "host")


def test_exec_on_a_terminal(runtime: Runtime, terminal: Callable[..., Terminal]) -> None:
    start(runtime, "host", LOOP)
    user = terminal(runtime.command("exec", "-it", "host", "sh"), 30, 90)
    user.expect("# ")
    user.type("stty size; tty\n")
    user.expect("30 90\r\n")
    user.expect("/dev/")
    user.resize(31, 91)
    user.type("until stty size | grep '31 91'; do :; done; exit 8\n")
    user.expect("\r\n31 91")
    assert user.wait() == 8
    assert user.mode() == user.before
    assert "not a terminal" in runtime.refused("exec", "-it", "host", "sh", code=125)
    assert runtime("exec", "-t", "host", "seq", "2000").split() == [str(n) for n in range(1, 2001)]
    runtime("rm", "-f", "host")


def test_exec_passes_signals_on(runtime: Runtime) -> None:
    start(runtime, "host", LOOP)
    script = "trap 'exit 42' INT; echo ready; while :; do sleep 0.05; done"
    with runtime.popen("exec", "host", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 42
    runtime("rm", "-f", "host")


def test_exec_ends_with_its_container(runtime: Runtime) -> None:
    start(runtime, "host", LOOP)
    with runtime.popen("exec", "host", "sh", "-c", "echo ready; sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        runtime("rm", "-f", "host")
        assert process.wait() == 137


def test_a_stopped_exec_does_not_keep_its_container_from_ending(runtime: Runtime) -> None:
    start(runtime, "host", LOOP)
    with runtime.popen("exec", "host", "sh", "-c", "echo ready; sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert runtime("stop", "-t", "1", "host") == "host\n"
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 137
    runtime("rm", "host")


def test_signals_reach_an_exec_that_nobody_reads(runtime: Runtime) -> None:
    start(runtime, "host", LOOP)
    with runtime.popen("exec", "host", "sh", "-c", "trap 'exit 9' TERM; head -c 1m /dev/zero & wait") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait() == 9
    runtime("rm", "-f", "host")


def test_ctrl_c_leaves_an_exec_whose_output_nobody_reads(runtime: Runtime) -> None:
    start(runtime, "host", LOOP)
    with runtime.popen("exec", "host", "sh", "-c", "head -c 90000 /dev/zero; exit 3") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        wait_until(lambda: "head" not in runtime("exec", "host", "ps"), "it has ended")
        wait_until(lambda: ended_by(process, signal.SIGTERM), "it ends")
        assert process.wait() == 143
    runtime("rm", "-f", "host")


def test_a_killed_exec_leaves_its_command(runtime: Runtime) -> None:
    start(runtime, "host", LOOP)
    process = runtime.popen("exec", "-i", "host", "sh", "-c", "echo ready; cat; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.communicate(timeout=60)
    assert "sleep 1000" in runtime("exec", "host", "ps")
    runtime("rm", "-f", "host")


def test_exec_in_one_that_has_ended(runtime: Runtime) -> None:
    runtime("run", "--name=ended", "--network=none", IMAGE, "true")
    assert "not running" in runtime.refused("exec", "ended", "true", code=1)
    runtime("rm", "ended")


def test_info(runtime: Runtime) -> None:
    shown = runtime("info")
    for line in (f"Root: {runtime.root}", f"State: {runtime.state}", "* fuse-aufs: works: ", "  vfs: works: "):
        assert line in shown
    assert re.search(r"^Cgroups: (v1|v2|hybrid|not mounted)$", shown, re.MULTILINE)
    assert re.search(r"^  (memory: v[12]|memory: missing)", shown, re.MULTILINE)


def test_version_and_help_need_nothing(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path / "root", tmp_path / "state")
    assert re.match(r"fuse-aufs runtime \S+", runtime("version"))
    for words in (["--help"], ["help"], []):
        shown = runtime(*words)
        for verb in ("import", "images", "rmi", "run", "ps", "logs", "stop", "rm", "exec", "info", "version"):
            assert re.search(rf"^  {verb} +\w", shown, re.MULTILINE)
    for verb in ("run", "import", "ps"):
        assert runtime(verb, "--help").startswith(f"Usage: runtime {verb} ")
        assert runtime("help", verb) == runtime(verb, "--help")
    assert not runtime.root.exists()


@pytest.mark.parametrize("words", ["run --help", "ps", "run --rm nothing:like-this true"])
def test_what_serves_nothing_is_not_imported(tmp_path: Path, words: str) -> None:
    runtime = Runtime(tmp_path / "root", tmp_path / "state", "vfs")
    script = f"""
import sys
from runtime.cli import command
command({["--root", str(runtime.root), "--state", str(runtime.state), *words.split()]})
print(sorted({{"trio", "pyfuse3", "argparse", "logging", "asyncio"}} & set(sys.modules)))
"""
    import subprocess

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
