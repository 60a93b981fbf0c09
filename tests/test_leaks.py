"""The leak checks see what they are for: each thing is left behind on purpose, found, and taken back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import leaks
from tests.capabilities import cgroup_hierarchy
from unionfs.linux import mounts


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> leaks.Belongings:
    monkeypatch.setattr(leaks, "_PATIENCE", 0.0)
    return leaks.belongings(str(tmp_path))


def test_descriptor(before: leaks.Belongings, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert leaks.left_behind(before, str(tmp_path)) == [f"descriptor {fd} of {tmp_path}"]
    os.close(fd)
    assert leaks.left_behind(before, str(tmp_path)) == []


def test_what_a_failed_test_had_open(before: leaks.Belongings, tmp_path: Path) -> None:
    """Its files are closed, also after its variables were shown; its descriptors are not told of."""

    def fails() -> None:
        opened.append(os.open(tmp_path, os.O_RDONLY))
        file = open(tmp_path / "file", "w")  # noqa: SIM115
        assert file.closed

    opened: list[int] = []
    with pytest.raises(AssertionError) as raised:
        fails()
    assert "file" in raised.traceback[-1].frame.f_locals
    leaks.let_go(raised.value)
    assert leaks.left_behind(before, str(tmp_path)) == [f"descriptor {opened[0]} of {tmp_path}"]
    assert leaks.left_behind(before, str(tmp_path), failed=True) == []
    os.close(opened[0])


@pytest.mark.needs("tmpfs")
def test_mount(before: leaks.Belongings, tmp_path: Path) -> None:
    mounts.mount("leak", str(tmp_path), "tmpfs")
    assert leaks.left_behind(before, str(tmp_path)) == [f"mount of tmpfs (leak) at {tmp_path}"]
    mounts.umount2(str(tmp_path))
    assert leaks.left_behind(before, str(tmp_path)) == []


def test_daemon(before: leaks.Belongings, tmp_path: Path) -> None:
    """A process that left its session and its parent is still found, by its mark."""
    script = "setsid sh -c 'echo $$; exec sleep 60' &"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.wait() == 0
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        left = leaks.left_behind(before, str(tmp_path))
        os.kill(pid, signal.SIGKILL)
        assert shell.stdout.read() == ""  # the end of its standard output is its end
    assert any(line.startswith(f"process {pid} ") for line in left)


@pytest.mark.needs("loop")
def test_loop_device(before: leaks.Belongings, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 1 << 20)
    device = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
    name = device.stdout.strip()
    try:
        assert leaks.left_behind(before, str(tmp_path)) == [f"loop device {os.path.basename(name)} on {image}"]
    finally:
        subprocess.run(["losetup", "--detach", name], check=True)


@pytest.mark.needs("netns", "program:ip")
def test_link(before: leaks.Belongings, tmp_path: Path) -> None:
    subprocess.run(["ip", "link", "add", "leak0", "type", "veth", "peer", "name", "leak1"], check=True)
    try:
        assert leaks.left_behind(before, str(tmp_path)) == ["network link leak0", "network link leak1"]
    finally:
        subprocess.run(["ip", "link", "del", "leak0"], check=True)


@pytest.mark.needs("cgroups")
def test_control_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(leaks, "_PATIENCE", 0.0)
    before = leaks.belongings(str(tmp_path), groups=True)
    path = f"{cgroup_hierarchy()}/fuse-aufs-leak-{os.getpid()}"
    os.mkdir(path)
    try:
        assert f"control group {path}" in leaks.left_behind(before, str(tmp_path), groups=True)
    finally:
        os.rmdir(path)


@pytest.mark.needs("cgroups")
def test_another_runs_control_groups_are_out_of_sight() -> None:
    path = f"{cgroup_hierarchy()}/fuse-aufs-leak-{os.getpid()}"
    look = "from tests import isolation, leaks; isolation.isolate(); print(leaks.belongings('', groups=True).cgroups)"
    os.mkdir(path)
    try:
        seen = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    finally:
        os.rmdir(path)
    assert seen.stdout == "frozenset()\n", seen.stdout


def test_no_signal_stays_ignored() -> None:
    look = "import signal as s; from tests import isolation; isolation.isolate(); print(s.getsignal(3) is s.SIG_DFL)"
    seen = subprocess.run(
        ["sh", "-c", 'trap "" INT QUIT; exec "$0" -c "$1"', sys.executable, look],
        capture_output=True, text=True, check=True,
    )
    assert seen.stdout == "True\n"
