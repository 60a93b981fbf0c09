"""Somebody is in a container's mount namespace, or has a copy of it, and stays: a monitoring agent, a debugger. The
container ends, is read and removed all the same, and what was held goes with the one who held it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.catalog import probe
from tests.runtime.conftest import IMAGE, Runtime
from tests.runtime.containers import LOOP, snapshots, start


@contextmanager
def staying(*command: str) -> Iterator[None]:
    """A process that says when it is there."""
    with subprocess.Popen([*command, "sh", "-c", "echo there; exec sleep 100000"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        try:
            yield
        finally:
            process.kill()


@pytest.mark.needs("program:nsenter")
@pytest.mark.parametrize("driver", ["overlay2", "btrfs"])
def test_a_container_whose_namespace_is_held(
    installation: Runtime, tmp_path: Path, deadline: None, driver: str
) -> None:
    options = {"btrfs": {"btrfs.loopsize": "512M"}}.get(driver, {})
    found = probe(driver, str(tmp_path), options)
    if not found.works:
        pytest.skip(f"{driver}: {found.reason}")
    runtime = Runtime(tmp_path / "root", tmp_path / "state", driver)
    shutil.copytree(installation.root / "images", tmp_path / "root/images", symlinks=True)
    words = [word for option, value in options.items() for word in ("--storage-opt", f"{option}={value}")]
    runtime(*words, "run", "--rm", "--network=none", IMAGE, "true")
    start(runtime, "held", f"echo kept >/kept; {LOOP}")
    enter = ("nsenter", "-m", "-t", str(runtime.pid("held")))
    with staying(*enter), staying(*enter, "unshare", "-m"):
        assert runtime("stop", "-t", "0", "held") == "held\n"
        assert runtime.status("held").startswith("Exited (137)")
        assert runtime("diff", "held") == "A /kept\n"
        assert runtime("rm", "held") == "held\n"
        assert runtime.ids() == []
        assert runtime.run("--name=held", IMAGE, "sh", "-c", "ls /kept 2>/dev/null; echo free") == "free\n"
        assert os.listdir(runtime.state / "containers") == []
    runtime("rmi", IMAGE)
    assert snapshots(runtime) == {}
