"""Work that takes long: others are served meanwhile, however much there is of it; who waits for it can be interrupted;
and a session ends in the midst of it.

The servers here are held at a gate, before the system call that is the slow part of their work.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.children import Child, in_child
from tests.mounting import Union, server_of
from tests.unionfs.waiting import ended, wait_until, wait_until_unmounted
from unionfs.linux import consts, mounts
from unionfs.transport import info

pytestmark = pytest.mark.needs("fuse")

# Each thread writes a byte to the file GATE, and passes when nobody else has it locked.
GATED = """
import fcntl, os, sys
from unionfs import cli

def gated(call):
    def pass_the_gate(*arguments, **keywords):
        with open(os.environ["GATE"], "ab", buffering=0) as gate:
            gate.write(b"x")
            fcntl.flock(gate, fcntl.LOCK_SH)
        return call(*arguments, **keywords)
    return pass_the_gate

for name in os.environ["GATED"].split():
    setattr(os, name, gated(getattr(os, name)))
sys.exit(cli.main())
"""
BIG = bytes(range(1, 252)) * (1 << 17)  # 31 MiB: four pieces of a copy


class Gate:
    """Shut until it is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "ab")  # noqa: SIM115
        fcntl.flock(self._file, fcntl.LOCK_EX)

    @property
    def waiting(self) -> int:
        """How many have come to it."""
        return os.stat(self._path).st_size

    def open(self) -> None:
        if self._file.closed:
            return
        fcntl.flock(self._file, fcntl.LOCK_UN)  # children have the same open file
        self._file.close()


class Gated(Union):
    """A union whose server passes through a gate on its way into some calls of os."""

    def __init__(self, home: Path, transport: str, *calls: str) -> None:
        for branch in ("low", "up"):
            (home / branch).mkdir()
        super().__init__(str(home), [str(home / "low"), str(home / "up")], transport=transport)
        self.gate = Gate(home / "gate")
        self._calls = " ".join(calls)

    def mount(self) -> Gated:
        environment = {**os.environ, "GATE": f"{os.path.dirname(self.path)}/gate", "GATED": self._calls}
        subprocess.run([sys.executable, "-c", GATED, *self.command], env=environment, check=True)
        return self

    def close(self) -> None:
        self.gate.open()
        super().close()


@pytest.fixture
def copying(tmp_path: Path, transport: str) -> Iterator[Gated]:
    """`big` is on a file system that cannot share extents, else there is nothing to wait for."""
    union = Gated(tmp_path, transport, "copy_file_range")
    (tmp_path / "low" / "big").write_bytes(BIG)
    (tmp_path / "low" / "small").write_text("small")
    (tmp_path / "low" / "empty").touch()
    with contextlib.closing(union.mount()):
        yield union


@pytest.fixture
def syncing(tmp_path: Path, transport: str) -> Iterator[Gated]:
    union = Gated(tmp_path, transport, "fsync")
    with contextlib.closing(union.mount()):
        yield union


def writer(union: Union) -> Child:
    """A process that opens `big` for writing: killed by what interrupts it, else 0 when it has written."""

    def write() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with open(f"{union.path}/big", "r+b") as big:
            big.write(b"NEW")

    return in_child(write)


def syncer(union: Union, name: str) -> Child:
    """A process that writes a file and syncs it; its status is the errno."""

    def sync() -> None:
        try:
            fd = os.open(f"{union.path}/{name}", os.O_CREAT | os.O_WRONLY)
            os.write(fd, b"data")
            os.fsync(fd)
        except OSError as error:
            os._exit(error.errno or 255)

    return in_child(sync)


def interrupts(union: Union) -> int:
    return (info.ask(union.path)["requests"] or {}).get("INTERRUPT", 0)


def others_are_served(union: Union) -> None:
    done = subprocess.run(
        ["sh", "-c", "ls >/dev/null; echo new >new; cat new; mkdir dir; mv new dir; rm -r dir"],
        cwd=union.path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "new\n"


def test_a_copy_up_holds_up_nobody(copying: Gated, tmp_path: Path) -> None:
    """Others look up, read, list and create beside it, and copy up what has nothing to be copied."""
    child = writer(copying)
    wait_until(lambda: copying.gate.waiting == 1)
    with open(f"{copying.path}/small", encoding="ascii") as small:
        assert small.read() == "small"
    os.chmod(f"{copying.path}/empty", 0o600)
    assert (tmp_path / "up" / "empty").exists()
    others_are_served(copying)
    assert copying.gate.waiting == 1
    copying.gate.open()
    assert child.wait() == 0
    assert (tmp_path / "up" / "big").read_bytes() == b"NEW" + BIG[3:]


def test_who_waits_for_a_copy_up_holds_up_nobody(copying: Gated) -> None:
    first = writer(copying)
    wait_until(lambda: copying.gate.waiting == 1)
    second = in_child(lambda: os.chmod(f"{copying.path}/big", 0o600))
    wait_until(lambda: "request_wait_answer" in Path(f"/proc/{second.pid}/stack").read_text())
    others_are_served(copying)
    assert first.is_running() and second.is_running()
    copying.gate.open()
    assert (first.wait(), second.wait()) == (0, 0)
    assert copying.gate.waiting == 4


def test_a_directory_that_is_copied_holds_up_nobody(tmp_path: Path, transport: str) -> None:
    """Nor what is made in it meanwhile, which moves with it."""
    union = Gated(tmp_path, transport, "copy_file_range")
    (tmp_path / "low" / "d" / "sub").mkdir(parents=True)
    (tmp_path / "low" / "d" / "big").write_bytes(BIG)
    (tmp_path / "low" / "beside").mkdir()
    with contextlib.closing(union.mount()):
        for known in ("d/sub", "beside"):  # the rename keeps the root to itself
            os.stat(f"{union.path}/{known}")
        child = in_child(lambda: os.rename(f"{union.path}/d", f"{union.path}/e"))
        wait_until(lambda: union.gate.waiting == 1)
        os.mkdir(f"{union.path}/d/sub/new")
        os.symlink("target", f"{union.path}/d/link")
        Path(union.path, "beside", "file").write_text("new")
        os.unlink(f"{union.path}/beside/file")
        assert child.is_running()
        union.gate.open()
        assert child.wait() == 0
        assert sorted(os.listdir(f"{union.path}/e")) == ["big", "link", "sub"]
        assert os.listdir(f"{union.path}/e/sub") == ["new"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_who_is_interrupted_in_a_copy_up_undoes_it(
    copying: Gated, tmp_path: Path, transport: str, number: signal.Signals
) -> None:
    """Over pyfuse3, which knows nothing of interrupts, the copy is completed."""
    child = writer(copying)
    wait_until(lambda: copying.gate.waiting == 1)
    os.kill(child.pid, number)
    if transport == "direct":
        wait_until(lambda: interrupts(copying) > 0)
    others_are_served(copying)
    copying.gate.open()
    assert child.wait() == -number
    copied = os.path.exists(tmp_path / "up" / "big")
    assert copied == (transport == "pyfuse3")
    assert Path(copying.path, "big").read_bytes() == BIG
    assert copying.gate.waiting == (1 if transport == "direct" else 4)
    again = writer(copying)
    assert again.wait() == 0
    assert (tmp_path / "up" / "big").read_bytes() == b"NEW" + BIG[3:]
    assert (tmp_path / "low" / "big").read_bytes() == BIG


@pytest.mark.parametrize("transport", ["direct"])
def test_who_waits_for_anothers_copy_up_can_be_interrupted(copying: Gated, tmp_path: Path) -> None:
    first = writer(copying)
    wait_until(lambda: copying.gate.waiting == 1)
    before = info.ask(copying.path)["requests"] or {}
    second = writer(copying)
    wait_until(lambda: (info.ask(copying.path)["requests"] or {})["OPEN"] > before["OPEN"])
    os.kill(second.pid, signal.SIGINT)
    wait_until(lambda: not second.is_running())
    assert second.wait() == -signal.SIGINT
    assert first.is_running()
    copying.gate.open()
    assert first.wait() == 0
    assert (tmp_path / "up" / "big").read_bytes() == b"NEW" + BIG[3:]


@pytest.mark.parametrize("transport", ["direct"])
def test_a_copy_up_that_is_interrupted_is_made_by_the_next(copying: Gated, tmp_path: Path) -> None:
    first = writer(copying)
    wait_until(lambda: copying.gate.waiting == 1)
    second = writer(copying)
    wait_until(lambda: (info.ask(copying.path)["requests"] or {})["OPEN"] == 2)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: interrupts(copying) > 0)
    copying.gate.open()
    assert first.wait() == -signal.SIGKILL
    assert second.wait() == 0
    assert copying.gate.waiting == 1 + 4
    assert (tmp_path / "up" / "big").read_bytes() == b"NEW" + BIG[3:]


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def test_forty_slow_requests_hold_up_nobody(syncing: Gated) -> None:
    server = info.ask(syncing.path)["pid"]
    children = [syncer(syncing, f"file{number}") for number in range(40)]
    wait_until(lambda: syncing.gate.waiting == 40)
    others_are_served(syncing)
    assert threads(server) < 60
    syncing.gate.open()
    assert [child.wait() for child in children] == [0] * 40
    others_are_served(syncing)


@pytest.mark.parametrize("transport", ["direct"])
def test_threads_go_when_the_crowd_has_gone(syncing: Gated) -> None:
    server = info.ask(syncing.path)["pid"]
    children = [syncer(syncing, f"file{number}") for number in range(40)]
    wait_until(lambda: syncing.gate.waiting == 40)
    syncing.gate.open()
    assert [child.wait() for child in children] == [0] * 40
    wait_until(lambda: threads(server) <= 12)
    others_are_served(syncing)


def test_it_ends_under_slow_work(syncing: Gated) -> None:
    """Told twice to end it does, when what it has begun is done. The callers get their answer, or that there will be
    none."""
    server = server_of(syncing.path)
    with contextlib.closing(server):
        children = [syncer(syncing, f"file{number}") for number in range(5)]
        wait_until(lambda: syncing.gate.waiting == 5)
        os.kill(server.pid, signal.SIGTERM)
        wait_until_unmounted(syncing)
        assert not ended(server, 0)
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: "ending under its users" in Path(syncing.log).read_text())
        syncing.gate.open()
        assert ended(server)
    assert {child.wait() for child in children} <= {0, errno.ECONNABORTED, errno.ENOTCONN}
    syncing.check_log()


def test_it_is_aborted_under_slow_work(syncing: Gated) -> None:
    """umount -f: the callers are told at once, the server ends when its work is done."""
    server = server_of(syncing.path)
    with contextlib.closing(server):
        children = [syncer(syncing, f"file{number}") for number in range(5)]
        wait_until(lambda: syncing.gate.waiting == 5)
        mounts.umount2(syncing.path, consts.MNT_FORCE | consts.MNT_DETACH)
        assert {child.wait() for child in children} == {errno.ECONNABORTED}
        syncing.gate.open()
        assert ended(server)
    syncing.check_log()


def test_a_signal_with_a_handler_ends_no_copy_up(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """As on any file system: open(2) of a file, chmod(2) and rename(2) know no EINTR. INTERRUPT comes all the same."""
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "big").write_bytes(BIG)
    union = mount_union("low", "up")
    signals = []
    before = signal.signal(signal.SIGALRM, lambda *_: signals.append(1))
    opened = ctypes.CDLL(None, use_errno=True).open  # os.open would try again (PEP 475)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        fd = opened(os.fsencode(f"{union.path}/big"), os.O_WRONLY)
        code = ctypes.get_errno()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert fd >= 0, os.strerror(code)
    os.close(fd)
    assert (tmp_path / "up" / "big").read_bytes() == BIG


@pytest.mark.parametrize("transport", ["direct"])
def test_a_second_sigterm_lets_nobody_wait(syncing: Gated) -> None:
    """The others' requests fail at once, although the slow work, which cannot be given up, goes on."""
    slow = syncer(syncing, "slow")
    wait_until(lambda: syncing.gate.waiting == 1)
    server = server_of(syncing.path)
    absent = (f"absent{number}" for number in itertools.count())  # the kernel would not ask for one twice
    try:
        directory = os.open(syncing.path, os.O_RDONLY)
        try:
            os.kill(server.pid, signal.SIGTERM)
            wait_until_unmounted(syncing)
            os.kill(server.pid, signal.SIGTERM)
            wait_until(lambda: fails(directory, next(absent)))
            assert not ended(server, 0)
            syncing.gate.open()
            assert ended(server)
        finally:
            os.close(directory)
    finally:
        server.close()
    assert slow.wait() != 0


def fails(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    except OSError as error:
        assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        return True
    return False


def test_a_server_without_descriptors_serves_on(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    """Neither a thread nor an operation that gets none ends the mount."""
    (tmp_path / "low" / "tree").mkdir(parents=True)
    for number in range(100):
        (tmp_path / "low" / "tree" / str(number)).write_text("lower")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    union = mount_union("low", "up")
    server = info.ask(union.path)["pid"]
    resource.prlimit(server, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{server}/fd")), before[1]))
    with contextlib.suppress(OSError):  # refused or not
        os.rename(f"{union.path}/tree", f"{union.path}/moved")
    resource.prlimit(server, resource.RLIMIT_NOFILE, before)
    if not os.path.lexists(f"{union.path}/moved"):
        os.rename(f"{union.path}/tree", f"{union.path}/moved")
    assert len(os.listdir(f"{union.path}/moved")) == 100
