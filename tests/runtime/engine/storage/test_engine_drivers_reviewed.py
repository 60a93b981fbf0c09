"""What a review found between the engine and its drivers: commands beside each other, and what is left or damaged."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drivers.errors import TimedOut
from runtime.engine.containers import store as containers
from runtime.engine.networks import links
from runtime.engine.paths import Paths
from runtime.errors import NetworkError
from tests.runtime.conftest import IMAGE, Runtime, die_at

# A command that runs another one when it first comes to a call.
_BESIDE = """
import json, subprocess, sys
from importlib import import_module
place, beside = sys.argv[1], json.loads(sys.argv[2])
module, _, name = place.partition(":")
owner = import_module(module)
real = getattr(owner, name)
def call(*arguments, **named):
    if beside:
        subprocess.run(beside, check=True, stdout=subprocess.DEVNULL)
        beside.clear()
    return real(*arguments, **named)
setattr(owner, name, call)
from runtime.cli import command
command(sys.argv[3:])
"""


def test_a_container_that_starts_while_a_layer_is_filled(each_driver: Runtime) -> None:
    runtime = each_driver
    runtime("run", "--name=first", "--network=none", IMAGE, "sh", "-c", "echo new >/new")
    runtime("commit", "first", "layered")
    runtime("rm", "first")
    beside = runtime.command("run", "-d", "--name=beside", "--network=none", IMAGE, "sleep", "1000")
    words = runtime.command("run", "--rm", "--network=none", "layered", "cat", "/new")[3:]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _BESIDE, "runtime.images.layer:put_out", json.dumps(beside), *words],
            capture_output=True, text=True,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("new\n", "")
        assert runtime.status("beside").startswith("Up")
    finally:
        runtime("rm", "-f", "beside")
        runtime("rmi", "layered")


def test_what_a_killed_rmi_left_in_the_driver_is_taken_back(each_driver: Runtime) -> None:
    runtime = each_driver
    runtime("run", "--name=first", "--network=none", IMAGE, "sh", "-c", "echo new >/new")
    runtime("commit", "first", "layered")
    runtime("rm", "first")
    assert runtime.run("layered", "cat", "/new") == "new\n"
    directory = runtime.root / "drivers" / runtime.driver / "snapshots"
    before = len(os.listdir(directory))
    die_at(runtime, "drivers.directories:DirectorySnapshotter._discard", "rmi", "layered")
    assert len(os.listdir(directory)) == before
    runtime("image", "prune", "-f")
    assert len(os.listdir(directory)) == before - 1


def test_one_damaged_container_does_not_keep_the_others(each_driver: Runtime) -> None:
    runtime = each_driver
    runtime("run", "--name=older", "--network=none", IMAGE, "true")
    directory = runtime.root / "drivers" / runtime.driver / "snapshots"
    before = set(os.listdir(directory))
    runtime("run", "--name=newer", "--network=none", IMAGE, "true")
    (lost,) = set(os.listdir(directory)) - before
    shutil.rmtree(directory / lost)
    assert runtime("system", "df").splitlines()[2].split()[:2] == ["Containers", "2"]
    assert len(runtime("container", "prune", "-f").split("\n\n")[0].splitlines()) == 3
    assert runtime.ids() == []


def test_the_lock_of_the_names_is_waited_for_with_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = containers.ContainerStore(Paths(str(tmp_path / "root"), str(tmp_path / "state")))
    os.mkdir(f"{store.paths.containers}/{'0' * 64}")  # to be swept, under the lock
    monkeypatch.setattr(containers, "_PATIENCE", 0.01)
    with open(f"{store.paths.containers}/.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimedOut, match=rf"\.lock, which process {os.getpid()} "):
            store.sweep()
    store.sweep()
    assert set(os.listdir(store.paths.containers)) == {"names", ".lock"}


@pytest.mark.needs("root")
def test_a_user_who_locks_the_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import fcntl, os; fcntl.flock(os.open('/proc/self/ns/net', 0), 2); print(flush=True); os.read(0, 1)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["/usr/bin/python3", "-c", code], **pipes, user=65534, group=65534) as user:  # type: ignore[call-overload]
        user.stdout.readline()
        monkeypatch.setattr(links, "_PATIENCE", 0.01)
        with pytest.raises(NetworkError, match=f"network namespace .*, which process {user.pid} "), links.locked():
            pass
        user.communicate(b"\n")
    with links.locked():
        pass
