"""A mount that is handed over: `unionfs mount --hand-over`."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounting import TRANSPORTS, server_of, unionfs
from unionfs.linux import consts, mounts
from unionfs.transport import delivery

pytestmark = pytest.mark.needs("fuse")


@pytest.fixture(params=TRANSPORTS)
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    (tmp_path / "low").mkdir()
    (tmp_path / "low/f").write_text("x")
    (tmp_path / "up").mkdir()
    (tmp_path / "mnt").mkdir()
    spec, log = f"{tmp_path}/low:{tmp_path}/up", f"{tmp_path}/log"
    return [sys.executable, "-m", "unionfs", "mount", spec, "-o", f"transport={request.param}", "--log", log]


def run(words: list[str], connection: socket.socket) -> subprocess.CompletedProcess[str]:
    fd = connection.fileno()
    return subprocess.run(
        [*words, "--hand-over", str(fd)], pass_fds=[fd], capture_output=True, text=True, check=False, timeout=60
    )


@contextmanager
def handed_over(words: list[str]) -> Iterator[tuple[int, int]]:
    """Descriptors of the mount and of its server; the mount's is the receiver's to close."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            done = run(words, theirs)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        fd, server = delivery.receive(ours)
        assert ours.recv(1) == b""  # nobody has the other end any more
    try:
        yield fd, server
    finally:
        assert select.select([server], [], [], 30)[0], "the server has not ended"
        os.close(server)


def end(server: int, number: signal.Signals = signal.SIGTERM) -> None:
    signal.pidfd_send_signal(server, number)
    assert select.select([server], [], [], 30)[0]


def test_it_ends_with_its_descriptor(command: list[str], tmp_path: Path) -> None:
    before = mounts.mountinfo()
    for turn in range(2):
        with handed_over(command) as (fd, server):
            found, table = sorted(os.listdir(f"/proc/self/fd/{fd}/.")), mounts.mountinfo()
            os.mkdir(str(turn), dir_fd=fd)
            served = not select.select([server], [], [], 0)[0]
            os.close(fd)
        assert (found, table, served) == ([*map(str, range(turn)), "f"], before, True)
    assert sorted(os.listdir(tmp_path / "up")) == ["0", "1"]  # the work area is gone, too
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_attached_it_is_a_mount_like_any(command: list[str], tmp_path: Path) -> None:
    """Found by info and umount, which waits for the server."""
    target = str(tmp_path / "mnt")
    with handed_over(command) as (fd, _):
        mounts.move_mount(fd, "", consts.AT_FDCWD, target, consts.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(fd)
        point = mounts.mounted_at(os.path.realpath(target))
        assert point is not None
        assert (point.fstype, point.source) == ("fuse.unionfs", "unionfs")
        server_of(target).close()
        unionfs("info", target)
        unionfs("umount", target)


def test_a_signal_ends_it(command: list[str]) -> None:
    """Nobody can be found to unmount it; and what is attached where the server sees it is unmounted first."""
    with handed_over(command) as (fd, server):
        end(server)
        with pytest.raises(OSError) as ended:
            os.listdir(f"/proc/self/fd/{fd}/.")
        assert ended.value.errno == errno.ENOTCONN
        os.close(fd)


def test_a_signal_takes_it_off_its_place(command: list[str], tmp_path: Path) -> None:
    target = str(tmp_path / "mnt")
    with handed_over(command) as (fd, server):
        mounts.move_mount(fd, "", consts.AT_FDCWD, target, consts.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(fd)
        end(server)
        assert mounts.mounted_at(os.path.realpath(target)) is None


def test_a_killed_server_leaves_the_mount_to_its_holder(command: list[str]) -> None:
    with handed_over(command) as (fd, server):
        end(server, signal.SIGKILL)
        os.close(fd)


def test_a_receiver_that_is_gone(command: list[str], tmp_path: Path) -> None:
    """There is no mount then, and no server: it says so, and its branch is free."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        done = run(command, theirs)
    assert done.returncode == 1
    assert done.stderr == "unionfs: detached mount: nobody takes it any more (Broken pipe)\n"
    with handed_over(command) as (fd, _):
        os.close(fd)


def test_a_receiver_that_goes_with_the_mount_on_its_way(command: list[str]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        done = run(command, theirs)
    assert done.returncode == 0
    ours.close()
    with handed_over(command) as (fd, _):  # until the first one's server has ended, the branch is locked
        os.close(fd)


def test_a_default_acl_and_not_the_umask(command: list[str], tmp_path: Path) -> None:
    """As of a mount with a mount point (fs/fuse/dir.c, fuse_create_open; FUSE_DONT_MASK, SB_POSIXACL)."""
    subprocess.run(["setfacl", "-d", "-m", "u::rwx,g::rwx,o::rwx", str(tmp_path / "up")], check=True)
    made = {}
    with handed_over(command) as (fd, _):
        umask = os.umask(0o077)
        try:
            os.mkdir("made", dir_fd=fd)
        finally:
            os.umask(umask)
        made["handed over"] = os.stat("made", dir_fd=fd).st_mode
        os.close(fd)
    unionfs(*command[3:5], str(tmp_path / "mnt"), *command[5:])
    umask = os.umask(0o077)
    try:
        os.mkdir(tmp_path / "mnt/again")
    finally:
        os.umask(umask)
    made["mounted"] = os.stat(tmp_path / "mnt/again").st_mode
    unionfs("umount", str(tmp_path / "mnt"))
    assert made["handed over"] == made["mounted"]


def test_flags_of_a_mount(command: list[str]) -> None:
    for words, expected in (
        ("nosuid,nodev,noexec", os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC),
        ("ro", os.ST_RDONLY),
        ("noatime,sync", os.ST_NOATIME | os.ST_SYNCHRONOUS),
    ):
        with handed_over([*command, "-o", words]) as (fd, _):
            assert os.fstatvfs(fd).f_flag & expected == expected
            os.close(fd)


def test_wrong_words(command: list[str], tmp_path: Path) -> None:
    mnt = str(tmp_path / "mnt")
    for words, code, said in (
        ([mnt, "--hand-over", "0"], 2, "give a MOUNTPOINT or --hand-over, not both"),
        (["--hand-over", "x"], 2, "invalid int value: 'x'"),
        (["--hand-over", "77"], 1, "--hand-over 77: no socket to hand the mount over to (Bad file descriptor)"),
        (["--hand-over", "0"], 1, "no socket to hand the mount over to (Socket operation on non-socket)"),
    ):
        whole = [*command[:5], *words, *command[5:]]
        done = subprocess.run(whole, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert said in done.stderr
