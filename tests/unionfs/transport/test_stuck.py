"""A branch's file system that does not answer: what hangs is who asks for it, and the server ends all the same.

The branch is another union whose server is stopped, so the outer server's threads wait as on a dead network disk.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounting import Union, server_of
from tests.unionfs.transport.connections import connection, requests_waiting
from tests.unionfs.waiting import ended, wait_until, wait_until_unmounted
from unionfs.linux import consts, mounts
from unionfs.transport import control

pytestmark = [pytest.mark.needs("fuse"), pytest.mark.usefixtures("fusectl")]

# The command, with less patience at the end.
IMPATIENT = """
import sys
from unionfs import cli
from unionfs.transport import serving, watch
serving.ENDED_SECONDS = serving.HURRIED_SECONDS = 1
watch._LOOK_SECONDS = 0.1
sys.exit(cli.main())
"""


class Stuck:
    """`outer` is a mount of which a user, `user`, has asked what nobody answers. `transport` is its."""

    def __init__(self, outer: Path, user: subprocess.Popen[bytes], server: control.Server, log: Path) -> None:
        self.outer = outer
        self.user = user
        self.server = server
        self.log = log

    @property
    def mounted(self) -> bool:
        return mounts.mounted_at(os.path.realpath(self.outer)) is not None


@pytest.fixture
def stuck(mount_union: Callable[..., Union], tmp_path: Path, transport: str) -> Iterator[Stuck]:
    (tmp_path / "low" / "d").mkdir(parents=True)
    (tmp_path / "low" / "file").write_text("lower")
    inner = mount_union("low", "up", options=("transport=direct",))
    Path(inner.path, "file").read_text()  # the kernel learns that FLUSH is not wanted; nobody could be killed in one
    inner_server = server_of(inner.path)
    outer, log = tmp_path / "outer", tmp_path / "outer.log"
    for directory in (outer, tmp_path / "top"):
        directory.mkdir()
    words = ["mount", f"{inner.path}:{tmp_path}/top", str(outer), "-o", f"transport={transport}", "--log", str(log)]
    subprocess.run([sys.executable, "-c", IMPATIENT, *words], check=True, timeout=60)
    server = server_of(str(outer))
    assert (outer / "file").read_text() == "lower"
    for path in (str(outer), inner.path):  # what the outer server closes it closes in the inner mount
        wait_until(lambda path=path: requests_waiting(path) == 0)  # type: ignore[misc]
    os.kill(inner_server.pid, signal.SIGSTOP)
    user = subprocess.Popen(["stat", str(outer / "d" / "absent")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: requests_waiting(inner.path) > 0 and requests_waiting(str(outer)) > 0)
        yield Stuck(outer, user, server, log)
    finally:
        os.kill(inner_server.pid, signal.SIGCONT)
        user.kill()
        user.wait()
        while mounts.mounted_at(os.path.realpath(outer)) is not None:
            mounts.umount2(str(outer), consts.MNT_DETACH)
        if not ended(server, 5000):
            os.kill(server.pid, signal.SIGKILL)
        server.close()
        inner_server.close()


def test_two_sigterms_end_it(stuck: Stuck) -> None:
    os.kill(stuck.server.pid, signal.SIGTERM)
    if not ended(stuck.server, 3000):  # with pyfuse3 nobody is left to be told twice
        wait_until_unmounted(stuck)  # type: ignore[arg-type]
        os.kill(stuck.server.pid, signal.SIGTERM)
    assert ended(stuck.server)
    assert not stuck.mounted
    stuck.user.wait(20)
    assert "does not answer" in stuck.log.read_text()
    assert "Traceback" not in stuck.log.read_text()


WAITING = """
import os, sys
from unionfs import cli
from unionfs.transport import direct, serving, session
from unionfs.union.fs import UnionFs

class Waiting(UnionFs):
    def fsync(self, fh, datasync):
        self._stack.waiting.begins()
        open(os.environ["GATE"]).read()

direct.UnionFs = session.UnionFs = Waiting
serving.HURRIED_SECONDS = 1
sys.exit(cli.main())
"""


def test_slow_work_that_does_not_come_to_an_end(tmp_path: Path, transport: str) -> None:
    """It is in a thread of its own: all else is served, and two signals end it."""
    for name in ("low", "up", "mnt"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "gate")
    words = ["mount", f"{tmp_path}/low:{tmp_path}/up", str(tmp_path / "mnt"), "-o", f"transport={transport}"]
    environment = {**os.environ, "GATE": str(tmp_path / "gate")}
    subprocess.run([sys.executable, "-c", WAITING, *words, "--log", str(tmp_path / "log")], env=environment, check=True)
    server = server_of(str(tmp_path / "mnt"))
    (tmp_path / "mnt" / "file").write_text("new")
    with subprocess.Popen(["sync", str(tmp_path / "mnt" / "file")], stderr=subprocess.DEVNULL) as user:
        # Returns when the server is there; it waits until we close.
        with open(tmp_path / "gate", "w"):
            assert (tmp_path / "mnt" / "file").read_text() == "new"
            os.kill(server.pid, signal.SIGTERM)
            wait_until(lambda: mounts.mounted_at(os.path.realpath(tmp_path / "mnt")) is None)
            assert not ended(server, 0)
            os.kill(server.pid, signal.SIGTERM)
            assert ended(server)
        user.wait(20)
    server.close()
    assert "does not answer" in (tmp_path / "log").read_text()


def test_after_a_lazy_unmount_too(stuck: Stuck) -> None:
    """Its user cannot be killed: the kernel waits for the answer to what the server has read."""
    mounts.umount2(str(stuck.outer), consts.MNT_DETACH)
    for _ in range(2):
        os.kill(stuck.server.pid, signal.SIGTERM)
        if ended(stuck.server, 3000):
            break
    assert ended(stuck.server)
    stuck.user.wait(20)


def test_an_aborted_connection_ends_it(stuck: Stuck) -> None:
    Path("/sys/fs/fuse/connections", connection(str(stuck.outer)), "abort").write_text("1")
    stuck.user.wait(20)
    assert ended(stuck.server)
    assert not stuck.mounted
    assert "does not answer" in stuck.log.read_text()


def test_umount_comes_back(stuck: Stuck) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unionfs", "umount", str(stuck.outer)],
        capture_output=True, text=True, timeout=40, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "busy" in done.stderr
    assert not ended(stuck.server, 0)
