"""The machine stops: no process is left, nothing that was mounted, nothing below --state. The next command finds the
containers as they were, each with its data, and what they held is free."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.catalog import probe
from tests import leaks
from tests.runtime.conftest import IMAGE, Runtime, links, wait_until
from tests.runtime.containers import LOOP, alive, found, kill_and_wait, snapshots, start
from unionfs.linux import consts, mounts

OPTIONS = {"btrfs": {"btrfs.loopsize": "512M"}}


@pytest.fixture(params=["fuse-aufs", "overlay2", "btrfs"])
def own(
    request: pytest.FixtureRequest, installation: Runtime, tmp_path: Path, deadline: None
) -> Iterator[tuple[Runtime, list[str]]]:
    """The image in an installation that goes with the test; and the options that its driver is first opened with."""
    options = OPTIONS.get(request.param, {})
    found = probe(request.param, str(tmp_path), options)
    if not found.works:
        pytest.skip(f"{request.param}: {found.reason}")
    runtime = Runtime(tmp_path / "root", tmp_path / "state", request.param)
    shutil.copytree(installation.root / "images", tmp_path / "root/images", symlinks=True)
    yield runtime, [word for option, value in options.items() for word in ("--storage-opt", f"{option}={value}")]
    left = runtime.ids()
    if left:
        runtime("rm", "-f", *left)


def reboot(runtime: Runtime, names: list[str]) -> None:
    """Tasks first: no process of ours sees another one end. What a server of a union has not synced, it has written."""
    states = [found(runtime, name).state() for name in names]
    for state in states:
        kill_and_wait(state.task_pid)
    for state in states:
        if alive(state.pid):
            kill_and_wait(state.pid)
    for pid in leaks.processes():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
                ours = os.fsencode(str(runtime.root)) in cmdline.read()
            if ours:
                kill_and_wait(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended by itself
    for directory, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
        if any(state_id in directory for state_id in runtime_ids(runtime)):
            wait_until(lambda directory=directory: removed(directory), "its control group is empty")  # type: ignore[misc]
    for point in reversed(mounts.mountinfo()):
        if point.target.startswith((f"{runtime.root}/", f"{runtime.state}/")):
            mounts.umount2(point.target, consts.MNT_DETACH)
    subprocess.run(["rm", "-rf", "--one-file-system", runtime.state], check=True)


def runtime_ids(runtime: Runtime) -> list[str]:
    return [name for name in os.listdir(runtime.root / "containers") if len(name) == 64]


def removed(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def test_containers_of_before(own: tuple[Runtime, list[str]]) -> None:
    runtime, options = own
    write = "echo kept >/kept; rm /bin/vi; sync"
    runtime(*options, "run", "--name=ended", "--network=none", IMAGE, "sh", "-c", f"{write}; exit 0")
    start(runtime, "ran", f"{write}; {LOOP}")
    runtime("run", "-d", "--name=bridged", IMAGE, "sh", "-c", LOOP)
    start(runtime, "thrown", LOOP, "--rm")
    reboot(runtime, ["ran", "bridged", "thrown"])
    assert runtime.status("ran").startswith("Exited (255)")
    assert runtime.status("bridged").startswith("Exited (255)")
    assert runtime.status("ended").startswith("Exited (0)")
    assert len(runtime.ids()) == 3, "what was to be removed at its end is removed"
    for name in ("ran", "ended"):
        assert runtime("diff", name).splitlines() == ["C /bin", "D /bin/vi", "A /kept"]
    runtime("commit", "ran", "made")
    assert runtime.run("made", "cat", "/kept") == "kept\n"
    assert "ready" in runtime("logs", "ran")
    assert runtime("rm", "ran", "ended", "bridged").split() == ["ran", "ended", "bridged"]
    assert links() == ["lo"]
    assert runtime.run("--name=ran", IMAGE, "echo", "free") == "free\n"
    assert runtime("run", "--rm", IMAGE, "hostname", "-i").strip()
    runtime("rmi", "made", IMAGE)
    assert snapshots(runtime) == {}
