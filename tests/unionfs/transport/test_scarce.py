"""Threads, processes and descriptors that are not to be had: a server that cannot serve says so and goes; one that
serves goes on with what it has."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import fails
from tests.mounting import Union, server_of, unionfs
from tests.unionfs.waiting import ended, wait_until
from unionfs.linux import mounts
from unionfs.transport import control, direct, info, serving

pytestmark = pytest.mark.needs("fuse")

UNIONFS = [sys.executable, "-m", "unionfs"]


# Processes and threads


class Cgroup:
    """A cgroup of its own that bounds how many tasks there may be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def limit(self, most: int) -> None:
        (self.path / "pids.max").write_text(str(most))

    @property
    def tasks(self) -> int:
        return int((self.path / "pids.current").read_text())

    def enter(self) -> None:
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        for process in (self.path / "cgroup.procs").read_text().split():
            os.kill(int(process), signal.SIGKILL)
        wait_until(lambda: self.tasks == 0)
        self.path.rmdir()


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    root = Path("/sys/fs/cgroup/pids")
    if not (root / "cgroup.procs").exists():
        root = Path("/sys/fs/cgroup")
        if "pids" not in (root / "cgroup.subtree_control").read_text().split():
            pytest.skip("there is no pids controller to be had")
    made = Cgroup(root / f"fuse-aufs-test-{os.getpid()}")
    yield made
    made.remove()


def mount_in(cgroup: Cgroup, home: Path, transport: str) -> subprocess.CompletedProcess[str]:
    for name in ("low", "up", "mnt"):
        (home / name).mkdir(exist_ok=True)
    words = ["mount", f"{home}/low:{home}/up", str(home / "mnt"), "-o", f"transport={transport}"]
    return subprocess.run(
        [*UNIONFS, *words, "--log", str(home / "log")],
        capture_output=True, text=True, timeout=60, check=False, preexec_fn=cgroup.enter,
    )  # fmt: skip


@pytest.mark.parametrize("most", range(1, 8))
def test_as_many_tasks_as_there_may_be(tmp_path: Path, transport: str, cgroup: Cgroup, most: int) -> None:
    """It is mounted and serves, slow work and the end included; or it is refused in one line and nothing is left."""
    cgroup.limit(most)
    done = mount_in(cgroup, tmp_path, transport)
    if done.returncode:
        assert most < 6, done.stderr
        assert done.returncode == 1
        assert done.stderr.startswith("unionfs: ")
        assert done.stderr.count("\n") == 1
        assert mounts.mounted_at(os.path.realpath(tmp_path / "mnt")) is None
        return
    assert most > 3
    (tmp_path / "low" / "large").write_bytes(b"x" * (1 << 20))
    with (tmp_path / "mnt" / "large").open("r+b") as file:
        file.write(b"y")
        os.fsync(file.fileno())
    assert (tmp_path / "up" / "large").read_bytes()[:2] == b"yx"
    server = server_of(str(tmp_path / "mnt"))
    os.kill(server.pid, signal.SIGTERM)
    assert ended(server)
    server.close()
    assert mounts.mounted_at(os.path.realpath(tmp_path / "mnt")) is None
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_no_further_thread(tmp_path: Path, transport: str, cgroup: Cgroup) -> None:
    """From some moment on. Slow work is done by those there are, many at once."""
    cgroup.limit(1000)
    for name in range(8):
        (tmp_path / "low").mkdir(exist_ok=True)
        (tmp_path / "low" / f"{name}").write_bytes(b"x" * (1 << 20))
    assert mount_in(cgroup, tmp_path, transport).returncode == 0
    cgroup.limit(cgroup.tasks)
    failed: list[BaseException] = []

    def change(name: int) -> None:
        try:
            with (tmp_path / "mnt" / f"{name}").open("r+b") as file:
                file.write(b"y")
                os.fsync(file.fileno())
        except OSError as error:
            failed.append(error)

    changing = [threading.Thread(target=change, args=[name]) for name in range(8)]
    for thread in changing:
        thread.start()
    for thread in changing:
        thread.join(30)
        assert not thread.is_alive()
    assert not failed
    assert info.ask(str(tmp_path / "mnt"))["pid"]
    server = server_of(str(tmp_path / "mnt"))
    os.kill(server.pid, signal.SIGTERM)
    assert ended(server)
    server.close()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert sorted(os.listdir(tmp_path / "up")) == [str(name) for name in range(8)]


# Descriptors


@pytest.fixture(params=[40, 64, 256])
def few(request: pytest.FixtureRequest, tmp_path: Path, transport: str) -> Iterator[Union]:
    """A union whose server may have so many descriptors, and each open file takes one."""
    for name in ("low", "up"):
        (tmp_path / name).mkdir()
    for number in range(300):
        directory = tmp_path / "low" / f"d{number}"
        directory.mkdir()
        (directory / "f").write_text(f"{number}")
    union = Union(str(tmp_path / "few"), [f"{tmp_path}/low", f"{tmp_path}/up"], ["posix"], transport=transport)
    limit = f'ulimit -n {request.param} && exec "$@"'
    subprocess.run(["sh", "-c", limit, "sh", *UNIONFS, *union.command], check=True, timeout=60)
    yield union
    union.close()


def test_all_descriptors_are_taken(few: Union, tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    """Who wants more is refused, who knows the mount can ask about it and end it, and all works when some are free."""
    with contextlib.ExitStack() as opened:
        with pytest.raises(OSError) as caught:  # looked at below
            for number in range(300):
                opened.enter_context(open(os.path.join(few.path, f"d{number}", "f"), encoding="ascii"))
        assert caught.value.errno in (errno.EMFILE, errno.ENFILE)
        assert info.ask(few.path)["open_files"] > 5
        other = mount_union("low2", "up2")  # which looks at the sockets of all
        other.unmount()
        spent = cpu_seconds(few)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for client in clients:
            client.connect(os.path.join(control.directory(), identity(few)))
        time.sleep(0.5)  # not to wait for something: whether it is idle in that time
        assert cpu_seconds(few) - spent < 0.3, "the server spins"
        for client in clients:
            client.close()
    wait_until(lambda: info.ask(few.path)["open_files"] == 0)
    for number in range(300):
        assert Path(few.path, f"d{number}", "f").read_text() == f"{number}"
    Path(few.path, "d1", "new").write_text("new")
    few.unmount()


def test_what_keeps_no_descriptor_is_done(few: Union) -> None:
    """Whatever files are open. Who wants to open another is refused before it is made."""
    path = Path(few.path)
    with contextlib.ExitStack() as opened:
        with pytest.raises(OSError):
            for number in range(300):
                opened.enter_context(open(path / f"d{number}" / "f", encoding="ascii"))
        for number in range(260, 300, 8):  # those that were not opened yet
            directory = path / f"d{number}"
            with fails(errno.EMFILE):
                os.open(directory / "new", os.O_CREAT | os.O_WRONLY)
            with fails(errno.EMFILE):
                os.open(directory / "f", os.O_RDONLY)
            assert os.listdir(directory) == ["f"]
            assert (directory / "f").stat().st_size == len(str(number))
            os.truncate(directory / "f", 1)
            os.chmod(directory / "f", 0o600)
            os.chown(directory / "f", 1, 2)
            os.utime(directory / "f", (1, 2))
            os.mkdir(directory / "d")
            os.symlink("target", directory / "l")
            assert os.readlink(directory / "l") == "target"
            os.mkfifo(directory / "p")
            os.link(directory / "f", directory / "g")
            os.rename(directory / "g", directory / "h")
            os.setxattr(directory / "f", "user.a", b"b")
            assert os.getxattr(directory / "f", "user.a") == b"b"
            assert os.listxattr(directory / "f") == ["user.a"]
            os.removexattr(directory / "f", "user.a")
            os.unlink(directory / "h")
            os.rmdir(directory / "d")
            assert sorted(os.listdir(directory)) == ["f", "l", "p"]
            os.rename(directory, path / f"moved{number}")
            assert os.statvfs(path).f_namemax > 200
    wait_until(lambda: info.ask(few.path)["open_files"] == 0)
    (path / "moved260" / "new").write_text("new")
    assert (path / "moved260" / "f").read_text() == "2"


def test_it_ends_with_all_descriptors_taken(few: Union) -> None:
    server = server_of(few.path)
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(OSError):
            for number in range(300):
                opened.enter_context(open(os.path.join(few.path, f"d{number}", "f"), encoding="ascii"))
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: not few.mounted)
        assert not ended(server, 0)
    assert ended(server)
    server.close()
    few.check_log()


def identity(union: Union) -> str:
    from unionfs.transport import device

    point = mounts.mount_of(union.path)
    assert point is not None
    return device.identity_of(point) or ""


def cpu_seconds(union: Union) -> float:
    server = server_of(union.path)
    try:
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    finally:
        server.close()


@pytest.fixture
def exhausted() -> Iterator[Callable[[], None]]:
    """Take all descriptors of this process, when called."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []

    def take() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))

    yield take
    for fd in taken:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_client_when_all_descriptors_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exhausted: Callable[[], None]
) -> None:
    """It gets one that was kept; where that is taken as well the server pauses, and does not look again at once."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(control, "directory", lambda: str(tmp_path / "run" / "mounts"))
    announcement = control.Announcement("0:7.1")
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for client in clients:
        client.connect(announcement.path)
        client.sendall(b"info\n")
    exhausted()
    assert direct._serve_client(announcement, {b"info": lambda _: {"a": 1}})
    assert b'"a": 1' in clients[0].recv(100)
    announcement._give_spare()
    exhausted()
    assert not direct._serve_client(announcement, {b"info": lambda _: {"a": 1}})
    with fails(errno.EMFILE):
        with announcement.client():
            pass
    for client in clients:
        client.close()
    assert direct._serve_client(announcement, {b"info": lambda _: {"a": 1}})
    announcement.withdraw()


def test_the_table_of_mounts_takes_no_descriptor(exhausted: Callable[[], None]) -> None:
    unmounter = serving.Unmounter()
    before = mounts.mountinfo()
    exhausted()
    assert unmounter._table.read() == before
    assert unmounter.places("0:1.2") == []
    unmounter.close()


def test_unmounting_a_whole_flood_of_clients(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    """Who says nothing is heard in turn, and keeps nobody from ending it."""
    union = mount_union("low", "up")
    clients = []
    for _ in range(50):
        client = socket.socket(socket.AF_UNIX)
        client.connect(os.path.join(control.directory(), identity(union)))
        clients.append(client)
    Path(union.path, "new").write_text("new")
    unionfs("umount", union.path)
    for client in clients:
        client.close()
