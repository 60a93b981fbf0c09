"""A mount's server is told from every other one: the kernel hands device numbers out again at once, servers may be
stopped, and a mount shows in many places."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounting import Union, server_of, unionfs
from tests.unionfs.waiting import ended
from unionfs.linux import consts, mounts
from unionfs.transport import control, device, info, serving
from unionfs.union import mark

pytestmark = pytest.mark.needs("fuse")

UNIONFS = [sys.executable, "-m", "unionfs"]


def number(union: Union) -> str:
    point = mounts.mount_of(union.path)
    assert point is not None
    return point.device


@pytest.fixture
def stopped(mount_union: Callable[..., Union]) -> Iterator[tuple[Union, control.Server]]:
    """A union whose server is stopped; at the end it goes on, and ends if its mount is gone."""
    union = mount_union("low", "up")
    server = server_of(union.path)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield union, server
    finally:
        os.kill(server.pid, signal.SIGCONT)
        if not union.mounted:
            assert ended(server)
        server.close()


def mounted_as(freed: str, mount_union: Callable[..., Union], probes: Path) -> Union:
    """A union whose mount got the device number `freed`. The kernel gives out the lowest that is free: those below are
    taken first, and others on this machine may be quicker."""
    probes.mkdir()
    taken = 0
    try:
        for _ in range(500):
            mounts.mount("probe", str(probes), "tmpfs")
            taken += 1
            point = mounts.mount_of(str(probes))
            assert point is not None
            if int(point.device.split(":")[1]) < int(freed.split(":")[1]):
                continue
            mounts.umount2(str(probes))
            taken -= 1
            if point.device == freed:
                union = mount_union("low2", "up2")
                if number(union) == freed:
                    return union
                union.unmount()
        pytest.skip("the kernel did not give the number out again")
    finally:
        for _ in range(taken):
            mounts.umount2(str(probes))


def test_a_stopped_server_of_the_same_number(
    stopped: tuple[Union, control.Server], mount_union: Callable[..., Union], tmp_path: Path
) -> None:
    """It is neither asked, nor waited for, nor does it take the new mount for its own when it goes on."""
    old, server = stopped
    freed = number(old)
    mounts.umount2(old.path, consts.MNT_DETACH)
    new = mounted_as(freed, mount_union, tmp_path / "probe")
    start = time.monotonic()
    pid = info.ask(new.path)["pid"]
    assert pid != server.pid
    assert time.monotonic() - start < 5
    os.kill(server.pid, signal.SIGCONT)
    assert ended(server)
    assert info.ask(new.path)["pid"] == pid
    unionfs("umount", new.path)


def test_unmounting_beside_a_stopped_server_of_the_same_number(
    stopped: tuple[Union, control.Server], mount_union: Callable[..., Union], tmp_path: Path
) -> None:
    old, _ = stopped
    freed = number(old)
    mounts.umount2(old.path, consts.MNT_DETACH)
    new = mounted_as(freed, mount_union, tmp_path / "probe")
    new.unmount()
    assert not new.mounted


def test_nobody_detaches_another_mount(mount_union: Callable[..., Union]) -> None:
    """As a server does at its end, whose number another mount has by then."""
    union = mount_union("low", "up")
    point = mounts.mount_of(union.path)
    assert point is not None
    unmounter = serving.Unmounter()
    try:
        unmounter.detach(device.identity(point.device, mark.new()))
        assert union.mounted
        assert [p.target for p in unmounter.places(device.identity_of(point) or "")] == [point.target]
    finally:
        unmounter.close()


@pytest.mark.parametrize("verb", ["info", "umount"])
def test_the_own_server_is_stopped(stopped: tuple[Union, control.Server], verb: str) -> None:
    """It is said at once; what was asked for is done when it goes on."""
    union, server = stopped
    start = time.monotonic()
    done = subprocess.run([*UNIONFS, verb, union.path], capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - start < 10
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "stopped" in done.stderr
    assert str(server.pid) in done.stderr
    os.kill(server.pid, signal.SIGCONT)
    if verb == "umount":
        assert ended(server)
        assert not union.mounted
    else:
        assert info.ask(union.path)["pid"] == server.pid


@pytest.mark.needs("program:unshare")
def test_other_places_of_a_mount(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    union = mount_union("low", "up")
    pid = info.ask(union.path)["pid"]
    copy = tmp_path / "copy"
    copy.mkdir()
    mounts.mount(union.path, str(copy), None, consts.MS_BIND)
    try:
        assert info.ask(str(copy))["pid"] == pid
        for command in (["unshare", "--mount"], ["unshare", "--mount", "--pid", "--fork"]):
            done = subprocess.run(
                [*command, *UNIONFS, "info", "--json", str(copy)], capture_output=True, text=True, check=True
            )
            assert json.loads(done.stdout)["pid"] == pid
    finally:
        mounts.umount2(str(copy))
    inside = tmp_path / "inside"
    inside.mkdir()
    script = f"{' '.join(UNIONFS)} mount {tmp_path}/low:{tmp_path}/up2 {inside} && {' '.join(UNIONFS)} info {inside}"
    script += f" && {' '.join(UNIONFS)} info {union.path} && {' '.join(UNIONFS)} umount {inside}"
    (tmp_path / "up2").mkdir()
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"process {pid}," in done.stdout
    assert info.ask(union.path)["pid"] == pid


def test_how_a_mount_looks(mount_union: Callable[..., Union]) -> None:
    point = mounts.mount_of(mount_union("low", "up").path)
    assert point is not None
    assert (point.source, point.fstype) == ("unionfs", "fuse.unionfs")


def test_marks_differ_and_limit_nothing() -> None:
    marks = {mark.new() for _ in range(100)}
    assert len(marks) > 90
    assert all(1 << 30 <= mark < 1 << 31 for mark in marks)


def test_a_new_mount_disturbs_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes away the sockets of dead servers, and connects to no live one."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(control, "directory", lambda: str(tmp_path / "run" / "mounts"))
    live = control.Announcement("0:7.1")
    dead = control.Announcement("0:8.2")
    dead.socket.close()
    new = control.Announcement("0:9.3")
    try:
        assert sorted(os.listdir(control.directory())) == ["0:7.1", "0:9.3"]
        with live.client() as client:
            assert client is None
        assert new.path.endswith("/0:9.3")
    finally:
        live.withdraw()
        new.withdraw()
        dead.withdraw()


def test_a_queue_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that is stopped, and was asked many times."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(control, "directory", lambda: str(tmp_path / "run" / "mounts"))
    monkeypatch.setattr(control, "_CLIENT_PATIENCE_SECONDS", 0.05)
    announcement = control.Announcement("0:7.1")
    announcement.socket.listen(0)
    waiting = []
    try:
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            waiting.append(client)
            try:
                client.connect(announcement.path)
            except BlockingIOError:
                break
        for use in (lambda: control.find("0:7.1"), lambda: control.ask("0:7.1", control.INFO)):
            with pytest.raises(TimeoutError):
                use()
        control.Announcement("0:9.3").withdraw()
        assert os.path.exists(announcement.path)
    finally:
        for client in waiting:
            client.close()
        announcement.withdraw()
