"""A container's directory: its record, and the start that any process may give it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import CommandNotFound, ContainerEnded, ContainerError
from runtime.oci import container, state
from tests.runtime.oci.conftest import Config, process
from tests.runtime.oci.keeper import Keeper

pytestmark = pytest.mark.needs("root")

Make = Callable[..., Config]

# Creates, leaves, and ends; the container's process goes to whoever collects orphans.
_CREATE = """
import json, sys
from runtime.oci import container
container.create(sys.argv[1], json.load(sys.stdin)).leave()
"""


def _created_by_one_that_has_ended(directory: Path, config: Config) -> int:
    """The pid of a container's first process whose creator has ended."""
    subprocess.run([sys.executable, "-c", _CREATE, str(directory)], input=json.dumps(config).encode(), check=True)
    return state.load(str(directory)).pid


def _await_end(pid: int, pidfd: int) -> None:
    import select

    assert select.select([pidfd], [], [], 20)[0], f"{pid} does not end"
    os.close(pidfd)


def test_the_record_is_the_runtime_specs(keeper: Keeper, config: Make) -> None:
    box = keeper.create({**config("sleep", "1000"), "annotations": {"a": "b"}})
    found = json.loads(Path(box.directory, "state.json").read_text())
    wanted = {"ociVersion": "1.2.0", "id": os.path.basename(box.directory), "status": "created", "pid": box.pid,
              "bundle": box.directory, "annotations": {"a": "b"}}  # fmt: skip
    assert {key: found[key] for key in wanted} == wanted
    assert state.observe(box.directory).status == state.CREATED
    box.start()
    assert state.load(box.directory).status == state.observe(box.directory).status == state.RUNNING
    box.signal(signal.SIGKILL)
    box.wait()
    assert state.observe(box.directory).status == state.STOPPED
    box.delete()
    assert os.listdir(box.directory) == []
    with pytest.raises(ContainerError, match=r"^there is no container in "):
        state.load(box.directory)


def test_one_directory_has_one_container(keeper: Keeper, config: Make) -> None:
    box = keeper.create(config("sleep", "1000"))
    with pytest.raises(ContainerError, match=r"there is a container in .* already"):
        keeper.call("create", directory=box.directory, spec=config("true"), output=keeper.output())
    assert state.observe(box.directory).status == state.CREATED
    box.end()


def test_another_process_starts_it_when_its_creator_has_ended(tmp_path: Path, config: Make, rootfs: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir(0o700)
    pid = _created_by_one_that_has_ended(directory, config("touch", "/ran"))
    pidfd = os.pidfd_open(pid)
    assert state.observe(str(directory)).status == state.CREATED
    assert not (rootfs / "ran").exists()
    container.start(str(directory))
    _await_end(pid, pidfd)
    assert (rootfs / "ran").exists()
    with pytest.raises(ContainerError, match="cannot be started"):
        container.start(str(directory))
    container.delete(str(directory))


def test_why_it_cannot_run_is_told_to_who_starts_it(tmp_path: Path, config: Make) -> None:
    directory = tmp_path / "state"
    directory.mkdir(0o700)
    pid = _created_by_one_that_has_ended(directory, config("nope"))
    pidfd = os.pidfd_open(pid)
    with pytest.raises(CommandNotFound, match=r"^cannot run 'nope': not found in \$PATH$"):
        container.start(str(directory))
    _await_end(pid, pidfd)
    assert state.observe(str(directory)).status == state.STOPPED
    container.delete(str(directory))


def test_it_is_started_once(keeper: Keeper, config: Make, rootfs: Path) -> None:
    box = keeper.create(config("sh", "-c", "echo x >>/ran; sleep 1000"))
    script = "import sys; from runtime.oci import container; container.start(sys.argv[1])"
    starters = [
        subprocess.Popen([sys.executable, "-c", script, box.directory], stderr=subprocess.PIPE) for _ in range(4)
    ]
    said = [starter.communicate()[1] for starter in starters]
    assert sorted(starter.returncode for starter in starters) == [0, 1, 1, 1], said
    assert sum(b"cannot be started" in one for one in said) == 3
    box.end()
    assert (rootfs / "ran").read_text() == "x\n"


def test_who_only_looks_does_not_start_it(keeper: Keeper, config: Make, rootfs: Path) -> None:
    box = keeper.create(config("touch", "/ran"))
    for _ in range(3):
        assert state.observe(box.directory).status == state.CREATED
    assert not (rootfs / "ran").exists()
    assert box.start().wait().code == 0
    box.delete()


def test_its_starter_dies_before_it_records_it(keeper: Keeper, config: Make) -> None:
    box = keeper.create(config("sleep", "1000"))
    known = state.load(box.directory)
    box.start()
    state.save(box.directory, known)
    assert state.observe(box.directory).status == state.RUNNING
    box.end()


def test_the_start_is_out_of_the_containers_reach(keeper: Keeper, config: Make, rootfs: Path) -> None:
    """Neither by a name, nor by a descriptor of the process that waits, even for the container's root
    (CVE-2016-9962); and none of it is left to the command (CVE-2024-21626)."""
    box = keeper.create(config("sh", "-c", "ls /proc/self/fd; cat /proc/net/unix"))
    path = Path(box.directory, "start.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    open_there = {fd: os.readlink(f"/proc/{box.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{box.pid}/fd")}
    assert {fd for fd, what in open_there.items() if what.startswith("socket:")} == {"3", "4"}
    added = box.exec({**process("sh", "-c", "ls -l /proc/1/fd; readlink /proc/1/exe")}).start().wait().out
    assert "socket:" not in added and "python" not in added
    out = box.start().wait().out.split()
    assert out[:4] == ["0", "1", "2", "3"]  # the last is ls's own
    assert "start.sock" not in " ".join(out)
    box.delete()


def test_a_record_of_something_else_is_refused_and_deleted_nothing_by(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"status": "running", "pid": 1}'):
        (tmp_path / "state.json").write_text(text)
        for do in (state.observe, container.start, lambda path: container.kill(path, signal.SIGKILL)):
            with pytest.raises(ContainerError, match="is not a record of a container"):
                do(str(tmp_path))
        container.delete(str(tmp_path))


def test_who_connects_and_says_nothing_keeps_nobody_from_starting_it(keeper: Keeper, config: Make) -> None:
    box = keeper.create(config("true"))
    silent = [state.connect(box.directory) for _ in range(30)]
    box.start()
    assert box.wait().code == 0
    for channel in silent:
        channel.close()
    box.delete()


# Looks at a process that lives, with so many descriptors left.
_LOOK = """
import os, resource, sys
from runtime.errors import ContainerEnded, ContainerError
from runtime.oci import container, state
lowest = os.open("/dev/null", os.O_RDONLY)
os.close(lowest)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1 + int(sys.argv[2]), 1 << 10))
for look in (state.observe, lambda directory: container.kill(directory, 9)):
    try:
        look(sys.argv[1])
    except ContainerEnded:
        print("ended")
    except ContainerError as error:
        print(error)
assert os.open("/dev/null", os.O_RDONLY) == lowest
"""


def test_what_cannot_be_looked_at_is_not_said_to_have_ended(tmp_path: Path) -> None:
    pid = os.getpid()
    state.save(str(tmp_path), state.State("box", state.RUNNING, "", pid=pid, start_time=state.start_time(pid)))
    command = [sys.executable, "-c", _LOOK, str(tmp_path), "0"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == 2 * f"cannot look at the container's process {pid}: /proc/{pid}/stat: Too many open files\n"


def test_whatever_a_pid_has_become_the_process_has_ended(tmp_path: Path) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        for pid, started in ((thread.native_id or 0, 1), (os.getpid(), 1), (_ended(), 1), (0, 0)):
            state.save(str(tmp_path), state.State("box", state.RUNNING, "", pid=pid, start_time=started))
            assert state.observe(str(tmp_path)).status == state.STOPPED
            with pytest.raises(ContainerEnded):
                container.kill(str(tmp_path), signal.SIGKILL)
    finally:
        over.set()
        thread.join()


def _ended() -> int:
    with subprocess.Popen(["true"]) as process:
        return process.pid
