"""What a review found between the engine and its drivers: commands beside each other, and what is left or damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.runtime.conftest import IMAGE, Runtime, die_at

# A command that runs another one whenever it comes to a call.
_BESIDE = """
import json, os, subprocess, sys
from importlib import import_module
from unionfs.linux.mounts import mounted_at
place, beside = sys.argv[1], json.loads(sys.argv[2])
module, _, name = place.partition(":")
owner = import_module(module)
real = getattr(owner, name)
def call(*arguments, **named):
    if beside and mounted_at(os.path.realpath(arguments[0])):
        subprocess.run(beside, check=True, stdout=subprocess.DEVNULL)
        beside.clear()
    return real(*arguments, **named)
setattr(owner, name, call)
from runtime.cli import command
command(sys.argv[3:])
"""


def test_a_container_that_starts_while_a_layer_is_mounted(each_driver: Runtime) -> None:
    runtime = each_driver
    runtime("run", "--name=first", "--network=none", IMAGE, "sh", "-c", "echo new >/new")
    runtime("commit", "first", "layered")
    runtime("rm", "first")
    beside = runtime.command("run", "-d", "--name=beside", "--network=none", IMAGE, "sleep", "1000")
    words = runtime.command("run", "--rm", "--network=none", "layered", "cat", "/new")[3:]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _BESIDE, "runtime.images.unpack:unmount_all", json.dumps(beside), *words],
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
