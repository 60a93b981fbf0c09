"""Roots of the driver devicemapper for tests: one that they share, and what is on others."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.catalog import open_driver
from drivers.devicemapper import Driver, ioctl, records
from drivers.disk import loop, programs
from drivers.mounts.attached import mount_all, unmount_all
from tests.contracts.snapshotter.words import Words

MIB = 1 << 20
Opener = Callable[..., Driver]
OPTIONS = {"dm.loopdatasize": "256M", "dm.loopmetadatasize": "4M", "dm.basesize": "24M", "dm.min_free_space": "3%"}


SHARED = "fuse-aufs-test-shared"


@contextmanager
def pool_on_files(place: Path, name: str, metadata: int, data: int, uuid: str = "") -> Iterator[None]:
    """A thin pool of that name, as an administrator makes one."""
    for file, size in (("metadata", metadata), ("data", data)):
        (place / file).touch()
        os.truncate(place / file, size)
    with loop.attached(str(place / "metadata")) as below, loop.attached(str(place / "data")) as above:
        numbers = " ".join(f"7:{os.minor(os.stat(device).st_rdev)}" for device in (below, above))
        ioctl.create(name, uuid or f"LVM-{name}")
        ioctl.load(name, ioctl.Target(data // 512, "thin-pool", f"{numbers} 128 0 1 skip_block_zeroing"))
        ioctl.resume(name)
    try:
        yield
    finally:
        ioctl.remove(name)


class OneRoot(Words):
    """Tests share one root, and leave no snapshot in it."""

    driver_name = "devicemapper"
    driver_options = {"dm.thinpooldev": SHARED, "dm.basesize": "24M", "dm.min_free_space": "3%"}
    changed_options = {"dm.blocksize": "128K"}

    @pytest.fixture
    def root(self, shared: str, place: Path, request: pytest.FixtureRequest) -> Iterator[str]:
        begins_anew = request.node.originalname == "test_options_that_nobody_has"
        yield str(place / "driver") if begins_anew else shared
        if os.path.exists(shared):
            empty(shared)


def ours() -> list[str]:
    return [name for name in ioctl.devices() if name.startswith("fuse-aufs-") and name != SHARED]


def empty(root: str) -> None:
    """Leave nothing of the root's on the machine."""
    with closing(open_driver("devicemapper", root)) as driver:
        for info in reversed(list(driver.walk())):
            driver.remove(info.name)


def of_options(given: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", ".", 1).replace("__", "_"): value for name, value in given.items()}


def without_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(programs, "_SBIN", ())


def write(path: str, size: int) -> None:
    """Until it is on the device."""
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())


def soon(condition: Callable[[], bool]) -> bool:
    """The kernel takes a device away that is closed when it gets round to it (dm_deferred_remove())."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def thin(driver: Driver, key: str) -> records.ThinDevice:
    with driver._store.read() as transaction:
        found = records.of_snapshot(transaction, transaction.get(key).id)
    assert found is not None
    return found


def crash(driver: Driver) -> None:
    """As if the machine had stopped: the devices are gone, and nobody has said goodbye."""
    driver._store.close()
    for name in sorted(ours(), key=lambda name: name.endswith("-pool")):
        ioctl.remove(name)


def mount(given: Sequence[Mount]) -> str:
    path = tempfile.mkdtemp()
    mount_all(given, path)
    return path


def unmount(path: str) -> None:
    unmount_all(path)
    os.rmdir(path)


def digests(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
