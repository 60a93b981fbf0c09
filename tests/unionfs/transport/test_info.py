"""`unionfs info`: what it says, to whom, and that asking leaves the mount alone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contracts.posix.case import fails
from tests.mounting import Union, unionfs
from unionfs.linux import consts, mounts
from unionfs.transport import control, device, info
from unionfs.union import mark

UNIONFS = [sys.executable, "-m", "unionfs"]

FACTS: info.Facts = {
    "transport": {"name": "direct", "reason": "the kernel has all that it needs"},
    "protocol": "7.45",
    "flags": ["FUSE_PASSTHROUGH", "FUSE_POSIX_ACL"],
    "missing": [],
    "passthrough": {"enabled": True, "reason": ""},
    "lends": "programs",
    "volatile": False,
    "xino": "auto",
    "spin_us": 200,
    "branches": [
        {"path": "/up", "permission": "rw", "guarded": False},
        {"path": "/a\nb\udcff", "permission": "ro", "guarded": True},
    ],
    "nodes": 3,
    "open_files": 1,
    "requests": {"LOOKUP": 7, "GETATTR": 0, "READDIRPLUS": 12},
    "started": 0.0,
    "pid": 4242,
}


def test_what_a_reader_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 7565.0)
    assert info.text(FACTS, "/mnt") == (
        "Mount point:  /mnt\n"
        "Server:       process 4242, up 2 h 6 min\n"
        "Transport:    direct: the kernel has all that it needs\n"
        f"Protocol:     7.45, Linux {os.uname().release}\n"
        "Agreed on:    passthrough, posix_acl\n"
        "Passthrough:  yes\n"
        "Lower files:  programs and libraries are read by the kernel itself\n"
        "Spin:         200 microseconds\n"
        "Branches:     rw  /up\n"
        "              ro  '/a\\nb\\udcff' (guarded)\n"
        "Nodes:        3\n"
        "Open files:   1\n"
        "Requests:     12  READDIRPLUS\n"
        "               7  LOOKUP\n"
    )


def test_what_is_not_so_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 59.0)
    facts = FACTS.copy()
    facts |= {
        "protocol": None, "missing": ["FUSE_PASSTHROUGH"], "lends": "none", "spin_us": 0, "requests": {},
        "passthrough": {"enabled": False, "reason": "Linux before 6.9"},
    }  # fmt: skip
    lines = info.text(facts, "/mnt").splitlines()
    assert {
        "Server:       process 4242, up 59 s",
        f"Protocol:     as libfuse agreed on, Linux {os.uname().release}",
        "Not offered:  passthrough",
        "Passthrough:  no: Linux before 6.9",
        "Lower files:  read through the server",
        "Spin:         off",
        "Requests:     none",
    } <= set(lines)
    facts["requests"] = None
    assert "Requests:     not counted by this transport" in info.text(facts, "/mnt").splitlines()


@pytest.mark.parametrize(
    ("seconds", "said"), [(-1, "0 s"), (61, "1 min 1 s"), (3600, "1 h 0 s"), (86400 * 3 + 7300, "3 d 2 h")]
)
def test_times(monkeypatch: pytest.MonkeyPatch, seconds: int, said: str) -> None:
    monkeypatch.setattr(time, "time", lambda: float(seconds))
    assert f"up {said}\n" in info.text(FACTS, "/mnt")


@pytest.fixture
def unanswered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A mount on which every request waits for ever."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(control, "directory", lambda: str(tmp_path / "run" / "mounts"))
    path = str(tmp_path / "mnt")
    os.mkdir(path)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={fd},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,max_read={mark.new()}"
    mounts.mount("test", path, "fuse.unionfs", 0, data)
    yield path
    mounts.umount2(path, consts.MNT_DETACH)
    os.close(fd)


@pytest.mark.needs("fuse")
def test_asking_sends_nothing_to_the_mount(
    unanswered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("mnt")
    monkeypatch.chdir(tmp_path)
    point = mounts.mounted_at(os.path.realpath(tmp_path) + "/mnt")
    assert point is not None
    announcement = control.Announcement(device.identity_of(point) or "")
    announcement.socket.setblocking(True)
    ways = (unanswered, "mnt", "mnt/", "./mnt/.", str(tmp_path / "link"))

    def serve() -> None:
        for _ in ways:
            control.serve_one(announcement.socket.accept()[0], {b"info": lambda _: FACTS})

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for way in ways:
            assert info.ask(way) == FACTS
    finally:
        thread.join()
        announcement.withdraw()


@pytest.mark.needs("fuse")
def test_a_server_that_says_something_else(unanswered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bytes | BaseException | None] = [None, TimeoutError(), b'{"error": "not today"}']

    def ask(device: str, request: bytes) -> bytes | None:
        answer = said.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(control, "ask", ask)
    for words in ("cannot be reached: it has died", "does not answer", "not today"):
        with pytest.raises(OSError, match=words) as caught:
            info.ask(unanswered)
        assert caught.value.filename == unanswered


def test_where_nothing_is_mounted(tmp_path: Path) -> None:
    for path in (str(tmp_path), "/proc"):
        with pytest.raises(OSError, match="no union is mounted there"):
            info.ask(path)
    with fails(errno.ENOENT):
        info.ask(str(tmp_path / "absent"))


@pytest.fixture
def mounted(mount_union: Callable[..., Union], tmp_path: Path) -> Union:
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "file").write_text("lower")
    return mount_union("low", "up")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.needs("fuse")
def test_of_a_live_mount(mounted: Union, transport: str) -> None:
    before = info.ask(mounted.path)
    assert before["branches"] == [
        {"path": mounted.branches[1], "permission": "rw", "guarded": False},
        {"path": mounted.branches[0], "permission": "ro", "guarded": True},
    ]
    assert before["transport"] == {"name": transport, "reason": "asked for"}
    assert before["started"] <= time.time()
    with open(os.path.join(mounted.path, "file"), encoding="ascii"):
        now = info.ask(mounted.path)
        assert now["nodes"] == before["nodes"] + 1
        assert now["open_files"] == before["open_files"] + 1
        assert info.ask(mounted.path) == now, "asking changed what is told"
    done = run(*UNIONFS, "info", mounted.path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["pid"] == before["pid"]
    done = run(*UNIONFS, "info", mounted.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Server:       process {before['pid']}, up " in done.stdout
    assert f"ro  {mounted.branches[0]} (guarded)\n" in done.stdout


@pytest.mark.needs("fuse")
def test_a_client_that_stalls_holds_up_nobody(mounted: Union) -> None:
    point = mounts.mounted_at(os.path.realpath(mounted.path))
    assert point is not None
    with contextlib.ExitStack() as stalled:
        for _ in range(3):
            assert stalled.enter_context(control._connection(device.identity_of(point) or ""))
        assert info.ask(mounted.path)["nodes"]
        unionfs("umount", mounted.path)


@pytest.mark.needs("fuse", "program:unshare")
@pytest.mark.parametrize("transport", ["auto"])
def test_from_other_namespaces(mounted: Union) -> None:
    """Of processes: the socket leads there as well. With another /run it cannot be found, nor that of a dead server."""
    done = run("unshare", "--pid", "--fork", *UNIONFS, "info", "--json", mounted.path)
    assert done.returncode == 0, done.stderr
    pid = json.loads(done.stdout)["pid"]
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs run /run && exec "$@"', "sh"]
    refusals = [run(*hidden, *UNIONFS, "info", mounted.path)]
    os.kill(pid, signal.SIGKILL)
    refusals.append(run(*UNIONFS, "info", mounted.path))
    for done in refusals:
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"unionfs: {mounted.path}: its server cannot be reached: it has died, or ")
        assert done.stderr.count("\n") == 1
    unionfs("umount", mounted.path)
