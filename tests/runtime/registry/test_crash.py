"""Pulls that are killed: what is left can be gone on with, and nothing else is left."""

from __future__ import annotations

import functools
import itertools
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.catalog import open_driver
from runtime.errors import ImageError
from runtime.events import unheard
from runtime.images.reference import parse
from runtime.images.store import ImageStore
from runtime.registry.access import Access
from runtime.registry.pull import pull
from tests.children import in_child
from tests.mounting import mounted
from tests.runtime.conftest import Runtime, kill, wait_until
from tests.runtime.registry.conftest import Puller
from tests.runtime.registry.lying import CHUNK, Honest, Made, Server, made
from unionfs.linux import consts, mounts

# What changes a file system, as Python calls it: a kill before each of them sees every state there is on disk.
CHANGES = ("open", "write", "rename", "link", "unlink", "fsync", "ftruncate", "mkdir", "rmdir")
_IN_PARTS = re.compile(r"[0-9a-f]{64}(\.whole)?")


class StopsMidway(Honest):
    """Gives the first bytes of each layer and then nothing, until it is `free`."""

    def pour(self, digest: str, data: bytes) -> None:
        free: threading.Event = self.server.more["free"]
        if free.is_set() or digest not in self.server.image.layers:
            return super().pour(digest, data)
        super().pour(digest, data[: 2 * CHUNK])
        free.wait(60)
        return self.hang_up()


def test_a_killed_pull_is_gone_on_with(fresh: Runtime, lying: Callable[..., Server]) -> None:
    """Killed by SIGKILL after two chunks of each layer: not one byte comes twice."""
    free = threading.Event()
    server = lying(StopsMidway, made([8 * CHUNK] * 3), free=free)
    incoming = fresh.root / "images/incoming"
    process = fresh.popen("pull", f"{server.host}/x", stdin=subprocess.DEVNULL)

    def arrived() -> bool:
        parts = [incoming / layer[7:] for layer in server.image.layers]
        return all(part.exists() and part.stat().st_size == 2 * CHUNK for part in parts)

    try:
        wait_until(lambda: arrived() or process.poll() is not None, "two chunks of each layer are on disk")
        assert process.poll() is None, process.communicate()
    finally:
        kill(process)
        free.set()
    assert fresh("images", "-q") == ""
    fresh("pull", f"{server.host}/x")
    for layer in server.image.layers:
        assert server.sent[layer] == len(server.image.blobs[layer])
    assert os.listdir(incoming) == []


def _pull(place: Path, name: str, dying: int = 0) -> None:
    """A whole pull, or one that dies before its change `dying`."""
    if dying:
        _die_before(dying)
    driver = open_driver("vfs", str(place / "driver"))
    try:
        pull(ImageStore(str(place / "images")), Access(os.environ), parse(name), driver, unheard)
    finally:
        driver.close()


def _die_before(number: int) -> None:
    """From now on, this process dies before its `number`th change of a file system, whichever thread makes it."""
    count, opens = itertools.count(1), os.open

    def deadly(change: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if change is not opens or (len(arguments) > 1 and int(str(arguments[1])) & os.O_CREAT):
                reached = next(count)
            else:
                reached = 0
            if reached == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **named)

        return call

    for name in CHANGES:
        setattr(os, name, deadly(getattr(os, name)))


@pytest.mark.needs("tmpfs")
def test_a_kill_at_each_step(config: Path, lying: Callable[..., Server]) -> None:
    """Afterwards there are only blobs in part, the next pull succeeds, and leaves nothing of the first."""
    server = lying(Honest, made((3000, 5000)))
    name = f"{server.host}/x"
    with mounted([Mount("tmpfs", "tmpfs")]) as memory:  # which syncs quickly; what reaches a disk is no question here
        for number in itertools.count(1):
            place = Path(memory, str(number))
            status = in_child(functools.partial(_pull, place, name, number)).wait()
            assert status in (0, -signal.SIGKILL)
            _look(place, name, server.image)
            if status == 0:
                break
    assert number > 40, "the kills did reach the steps"


def _look(place: Path, name: str, image: Made) -> None:
    images, incoming = place / "images", place / "images/incoming"
    left = os.listdir(incoming) if incoming.exists() else []
    assert all(_IN_PARTS.fullmatch(entry) for entry in left), left
    for each in ImageStore(str(images)).list():
        assert each.references == (f"{name}:latest", f"{name}@{image.digest}")
        assert each.manifest == image.digest

    _pull(place, name)
    assert ImageStore(str(images)).get(name).manifest == image.digest
    assert os.listdir(incoming) == []
    assert not [entry for entry in os.listdir(images) if entry.endswith(".new") or entry == "unpack"]
    assert len(os.listdir(images / "blobs/sha256")) == 4
    assert not [mount for mount in mounts.mountinfo() if mount.target.startswith(str(place))]
    driver = open_driver("vfs", str(place / "driver"))
    driver.cleanup()
    assert len(list(driver.walk())) == 2
    driver.close()


@pytest.mark.needs("tmpfs")
def test_a_full_disk(config: Path, lying: Callable[..., Server]) -> None:
    """It is said; what has come stays, and with more room the pull goes on from there."""
    server = lying(Honest, made([8 * CHUNK] * 3))
    with mounted([Mount("tmpfs", "tmpfs", ("size=900k",))]) as memory:
        with pytest.raises(ImageError, match=f"cannot pull {server.host}/x:latest: no space is left at .*; free some"):
            _pull(Path(memory), f"{server.host}/x")
        assert ImageStore(f"{memory}/images").list() == []
        came = sum(os.stat(entry).st_size for entry in os.scandir(f"{memory}/images/incoming"))
        assert came > CHUNK
        mounts.mount("tmpfs", memory, None, consts.MS_REMOUNT, "size=20m")
        before = sum(server.sent.values())
        _pull(Path(memory), f"{server.host}/x")
        whole = sum(len(server.image.blobs[layer]) for layer in server.image.layers)
        assert sum(server.sent.values()) - before <= whole - came + len(server.image.config)


def test_two_pulls_at_once_fetch_each_blob_once(
    puller: Puller, fresh: Runtime, lying: Callable[..., Server], tmp_path: Path
) -> None:
    """The second waits for what the first receives, and finds it done."""

    class WaitsForBoth(Honest):
        def manifest(self, reference: str) -> None:
            self.server.more["both"].wait(30)
            super().manifest(reference)

    server = lying(WaitsForBoth, made([8 * CHUNK] * 3), both=threading.Barrier(2))
    both = [fresh.popen("pull", f"{server.host}/x", stdin=subprocess.DEVNULL) for _ in range(2)]
    try:
        for process in both:
            output, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            assert b"Status: " in output
    finally:
        for process in both:
            kill(process)
    for layer in server.image.layers:
        assert server.sent[layer] == len(server.image.blobs[layer])
    assert len(fresh("images", "-q").split()) == 1


def test_ctrl_c_ends_a_pull_at_once(fresh: Runtime, lying: Callable[..., Server]) -> None:
    free = threading.Event()
    server = lying(StopsMidway, made([8 * CHUNK] * 3), free=free)
    process = fresh.popen("pull", f"{server.host}/x", stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(server.sent) == 4, "all layers are under way")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130, "the time-out is 30 s"
    finally:
        kill(process)
        free.set()
