"""Thin devices as a driver: in a kernel that has them (`python -m tests.vm`)."""

from __future__ import annotations

import errno
import hashlib
import linecache
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from drivers.api import Mount
from drivers.catalog import open_driver, probe
from drivers.devicemapper import Driver, filesystem, ioctl, nodes, records, thinmeta
from drivers.disk import loop, programs
from drivers.errors import InUse, NotSupported, Unavailable
from drivers.mounts.attached import mount_all, unmount_all
from tests import trees
from tests.contracts.snapshotter import SnapshotterContract
from tests.contracts.snapshotter.words import FULL, Words
from tests.drivers.children import in_child
from tests.drivers.crashing import CrashContract
from tests.mounting import mounted
from unionfs.linux import consts, mounts, processes

MIB = 1 << 20
Opener = Callable[..., Driver]
OPTIONS = {"dm.loopdatasize": "256M", "dm.loopmetadatasize": "4M", "dm.basesize": "24M", "dm.min_free_space": "3%"}


SHARED = "fuse-aufs-test-shared"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A root on a pool that stays up: to bring one up and to make its base device take seconds in the guest."""
    place = tmp_path_factory.mktemp("shared")
    found = probe("devicemapper", str(place))
    if not found.works:
        pytest.skip(f"devicemapper: {found.reason}")
    with pool_on_files(place, SHARED, 4 * MIB, 256 * MIB):
        yield str(place / "driver")
    shutil.rmtree(place)


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


class TestDevicemapper(OneRoot, SnapshotterContract):
    depth = 105 if FULL else 12
    compared_layers = 4
    racers = 3
    turns = 4
    counts_files = False
    quota = 40 * MIB


def before_each_change(function: Callable[[], object], act: Callable[[int], None]) -> int:
    """Run `function`, and `act(n)` before its n-th call that changes something: an ioctl, a transaction's beginning
    and end, a lock, a sync, the size of a file, a program. How many there were."""
    number = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal number
        if event == "c_call" and _changes(frame, argument.__name__):
            number += 1
            act(number)

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return number


def _changes(frame: FrameType, call: str) -> bool:
    code = frame.f_code
    if call == "ioctl":
        asks = (ioctl.DM_DEV_STATUS_CMD, ioctl.DM_TABLE_STATUS_CMD, ioctl.DM_LIST_DEVICES_CMD)
        return code.co_filename != ioctl.__file__ or frame.f_locals["command"] not in asks
    if call == "execute":
        line = linecache.getline(code.co_filename, frame.f_lineno)
        return "PRAGMA" in line or (code.co_name == "_transaction" and frame.f_locals["begin"] != "BEGIN")
    return call in ("flock", "fsync", "ftruncate", "truncate", "fork_exec", "mknod", "pwritev")


class TestKilled(OneRoot, CrashContract):
    """A step is a call that changes something: what is between two of them leaves the same behind."""

    stride = 2
    unpacking_stride = 150

    def orphans(self, root: str) -> Sequence[str]:
        return [*super().orphans(root), *ours()]

    def trace(self, function: Callable[[], object], before_step: Callable[[int], None]) -> int:
        return before_each_change(function, before_step)

    @pytest.mark.skip("the store is made as any driver's is; what is this one's own is made with the first layer")
    def test_killed_in_the_first_open(self, root: str) -> None:
        pass

    def test_killed_on_the_way_up_and_down(self, opened: Opener, tmp_path: Path) -> None:
        """The first layer makes the pool and its base, and close() takes them down."""

        def first(before_step: Callable[[int], None]) -> None:
            driver = opened()

            def work() -> None:
                driver.prepare("key")
                driver.commit("name", "key")
                driver.close()

            self.trace(work, before_step)

        for _ in self.killed(first, 7):
            with closing(opened()) as driver:
                driver.cleanup()
                driver.check_invariants()
                for name in [info.name for info in driver.walk()]:
                    with mounted(driver.prepare("look", name) if name == "name" else driver.mounts(name)) as path:
                        trees.assert_tree(path, {})
                for info in reversed(list(driver.walk())):
                    driver.remove(info.name)
            assert self.orphans(str(tmp_path / "driver")) == []


def ours() -> list[str]:
    return [name for name in ioctl.devices() if name.startswith("fuse-aufs-") and name != SHARED]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    """opened(option=value, …) opens the driver on a root of the test's own; `dm_fs="xfs"` is dm.fs=xfs."""
    found = probe("devicemapper", str(tmp_path))
    if not found.works:
        pytest.skip(f"devicemapper: {found.reason}")
    drivers: list[Driver] = []

    def open_it(defaults: Mapping[str, str] = OPTIONS, **given: str) -> Driver:
        options = {**({} if (tmp_path / "driver").exists() else defaults), **_options(given)}
        driver = open_driver("devicemapper", str(tmp_path / "driver"), options)
        assert isinstance(driver, Driver)
        drivers.append(driver)
        return driver

    yield open_it
    for driver in drivers:
        driver.close()
    if "dm.thinpooldev" not in drivers[0]._store.options:  # such a one has gone by now
        empty(str(tmp_path / "driver"))


@pytest.fixture
def driver(shared: str) -> Iterator[Driver]:
    """On the root that tests share, with the pool up."""
    driver = open_driver("devicemapper", shared, OneRoot.driver_options)
    assert isinstance(driver, Driver)
    driver.view("empty")
    yield driver
    driver.close()
    empty(shared)


def empty(root: str) -> None:
    """Leave nothing of the root's on the machine."""
    with closing(open_driver("devicemapper", root)) as driver:
        for info in reversed(list(driver.walk())):
            driver.remove(info.name)


def _options(given: Mapping[str, str]) -> dict[str, str]:
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


# What containerd tests of its devmapper snapshotter (plugins/snapshots/devmapper/*_test.go).


def test_a_thin_number_is_taken_once(driver: Driver) -> None:
    """CreateThinDevice, RemoveDevice."""
    thins = driver._thins
    thins.create_thin(1000)
    with pytest.raises(OSError, match="exists") as taken:
        thins.create_thin(1000)
    assert taken.value.errno == errno.EEXIST
    thins.activate(1000, 2048)
    with pytest.raises(OSError, match="busy") as active:
        thins.delete(1000, patience=0)
    assert active.value.errno == errno.EBUSY
    assert thins.deactivate(1000)
    thins.delete(1000)
    thins.delete(1000)


@pytest.mark.parametrize(("kind", "size"), [("ext4", 16 * MIB), ("xfs", 304 * MIB)])
def test_file_systems(opened: Opener, kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """MkfsExt4, MkfsXfs, their NonDefault, MultipleXfsMounts, and a container of a size of its own."""
    label = {"ext4": "-L ours -m 0", "xfs": "-L ours"}[kind]
    driver = opened(
        dm_fs=kind, dm_basesize=f"{size // MIB}M", dm_mkfsarg=label, dm_mountopt="noatime", dm_loopdatasize="600M"
    )
    with mounted(driver.prepare("one")) as path:
        assert os.listdir(path) == []
        Path(path, "f").write_text("one")
        [point] = [point for point in mounts.mountinfo() if point.target == path]
        assert point.fstype == kind
        assert "noatime" in point.options
        node = point.source
    head = os.open(node, os.O_RDONLY)
    assert b"ours" in os.pread(head, 4096, 0)
    os.close(head)
    driver.commit("base", "one")
    with mounted(driver.prepare("left", "base")) as left, mounted(driver.prepare("right", "base")) as right:
        with mounted(driver.view("view", "base")) as view, mounted(driver.view("again", "base")) as again:
            Path(left, "f").write_text("left")
            assert [Path(place, "f").read_text() for place in (left, right, view, again)] == ["left", *3 * ["one"]]
            with pytest.raises(OSError, match="Read-only"):
                Path(view, "f").write_text("")
    with mounted(driver.prepare("large", "base", quota=2 * size)) as path:
        status = os.statvfs(path)
        assert 1.6 * size < status.f_blocks * status.f_frsize <= 2 * size
    driver.commit("larger", "large")
    with mounted(driver.prepare("on", "larger")) as path:
        status = os.statvfs(path)
        assert status.f_blocks * status.f_frsize > 1.6 * size
    with pytest.raises(NotSupported, match="can only be larger"):
        driver.prepare("small", "larger", quota=size)
    driver.cleanup()
    driver.check_invariants()
    without_programs(monkeypatch)
    with pytest.raises(Unavailable, match=f"apt-get install {filesystem.PACKAGE[kind]}"):
        filesystem.make(node, kind, ())


def test_mkfs_refuses(opened: Opener) -> None:
    """MakeFileSystem: what it says is passed on, and nothing is left of the base device."""
    driver = opened(dm_mkfsarg="--no-such-option")
    with pytest.raises(Unavailable, match=r"mkfs.ext4 .* failed"):
        driver.prepare("key")
    assert ours() == [driver._pool.name]
    driver.check_invariants()


def test_a_snapshot_has_what_its_origin_had(driver: Driver) -> None:
    """CreateSnapshotDevice: the origin is mounted and written to, and is held only for the moment."""
    thins = driver._thins
    [mount] = driver.prepare("key")
    with mounted([mount]) as path:
        Path(path, "before").write_text("not synced")
        thins.create_snap(1001, thin(driver, "key").device)
        Path(path, "after").write_text("")
        with mounted([Mount("ext4", nodes.ensure(thins.activate(1001, thin(driver, "key").sectors)))]) as snapshot:
            trees.assert_tree(snapshot, {"before": "not synced"})
            Path(snapshot, "before").write_text("changed")
        trees.assert_tree(path, {"before": "not synced", "after": ""})
    thins.deactivate(1001)
    thins.delete(1001)


def test_a_device_that_is_open_goes_when_it_is_closed(driver: Driver) -> None:
    """DeactivateDevice."""
    thins = driver._thins
    thins.create_thin(1002)
    holder = os.open(nodes.ensure(thins.activate(1002, 2048)), os.O_RDONLY)
    assert not thins.deactivate(1002, patience=0)
    assert not thins.activate(1002, 2048).is_going
    os.close(holder)
    active = thins.activate(1002, 2048)
    holder = os.open(active.node, os.O_RDONLY)
    assert not thins.deactivate(1002, patience=0)
    os.close(holder)
    assert soon(lambda: not os.path.exists(active.node))
    thins.delete(1002)


def test_what_cannot_be_activated_leaves_no_device(driver: Driver) -> None:
    """rollbackActivate."""
    before = ours()
    with pytest.raises(Unavailable, match="lost the thin device 1003"):
        driver._thins.activate(1003, 2048)
    assert ours() == before


def test_a_number_that_the_pool_has_and_the_store_has_not(driver: Driver) -> None:
    """PoolDeviceMarkFaulty, containerd#5110: it is passed by, and deleted by cleanup()."""
    driver.prepare("first")
    taken = thin(driver, "first").device + 1
    driver._thins.create_thin(taken)
    driver.prepare("key")
    assert thin(driver, "key").device == taken + 1
    driver.cleanup()
    driver.check_invariants()
    driver._thins.create_thin(taken)
    driver._thins.delete(taken)


def test_usage_is_what_was_added(driver: Driver) -> None:
    """DevMapperUsage."""
    with mounted(driver.prepare("key")) as path:
        write(f"{path}/f", 3 * MIB)
    driver.commit("base", "key")
    assert 3 * MIB <= driver.usage("base").size < 4 * MIB
    with mounted(driver.prepare("key", "base")) as path:
        write(f"{path}/g", MIB)
    driver.commit("next", "key")
    assert MIB <= driver.usage("next").size < 2 * MIB
    assert driver.usage("next").inodes == 1


# Space.


def test_a_full_pool(opened: Opener) -> None:
    """Who writes hears of it at once; nobody else is let in; and with more space all goes on, nothing lost."""
    driver = opened(dm_loopdatasize="32M", dm_basesize="64M")
    path = mount(driver.prepare("key"))
    try:
        Path(path, "kept").write_bytes(b"kept")
        os.sync()
        began = time.monotonic()
        with pytest.raises(OSError, match=r"No space|Input/output|Read-only") as full:
            write(f"{path}/large", 40 * MIB)
        assert time.monotonic() - began < 30  # the kernel's default holds writers for 60 s
        assert full.value.errno in (errno.ENOSPC, errno.EIO, errno.EROFS)
        with pytest.raises(OSError, match=r"data space of the thin pool is full: .*raise dm.loopdatasize") as refused:
            driver.prepare("other")
        assert refused.value.errno == errno.ENOSPC
        driver.close()
        driver = opened(dm_loopdatasize="128M")  # while it is mounted
        driver.prepare("other")
    finally:
        unmount(path)
    with mounted(driver.mounts("key")) as again:
        assert Path(again, "kept").read_bytes() == b"kept"
        write(f"{again}/new", 8 * MIB)
    driver.commit("name", "key")
    driver.check_invariants()
    with pytest.raises(Unavailable, match=r"dm.loopdatasize=64M is less than the 128M"):
        opened(dm_loopdatasize="64M")


def test_full_metadata(opened: Opener, tmp_path: Path) -> None:
    driver = opened(dm_loopmetadatasize="2M", dm_basesize="16M")
    driver.prepare("key")
    driver.commit("base", "key")
    driver.close()
    fill_metadata(tmp_path / "driver" / "thin-pool" / "metadata", 380)
    driver = opened(dm_min_free_space="1%")
    driver.prepare("key", "base")
    last = 5000
    with pytest.raises(OSError, match=r"metadata space of the thin pool is full: .*dm.loopmetadatasize") as full:
        while last < 6000:
            driver._thins.create_thin(last)
            last += 1
    assert full.value.errno == errno.ENOSPC
    for refused in (lambda: driver.prepare("other", "base"), lambda: driver.remove("key")):
        with pytest.raises(OSError, match="metadata space of the thin pool") as error:
            refused()
        assert error.value.errno == errno.ENOSPC
    assert [info.name for info in driver.walk()] == ["base"]  # what is removed is gone, and deleted when it can be
    driver.close()
    driver = opened(dm_loopmetadatasize="8M")
    with mounted(driver.prepare("other", "base")) as path:
        Path(path, "f").write_text("f")
    driver.cleanup()
    driver.check_invariants()


def fill_metadata(metadata: Path, devices: int) -> None:
    """Add so many empty thin devices to the metadata of a pool that is down: by message each takes a commit."""
    dump = subprocess.run(["thin_dump", metadata], capture_output=True, text=True, check=True).stdout
    more = "".join(
        f'<device dev_id="{2000 + number}" mapped_blocks="0" transaction="0" creation_time="0" snap_time="0"></device>'
        for number in range(devices)
    )
    (metadata.parent / "dump").write_text(dump.replace("</superblock>", f"{more}</superblock>"))
    command: list[str | Path] = ["thin_restore", "-q", "-i", metadata.parent / "dump", "-o", metadata]
    subprocess.run(command, capture_output=True, check=True)


def test_too_little_is_left(opened: Opener) -> None:
    driver = opened(dm_loopdatasize="32M", dm_basesize="16M", dm_min_free_space="60%")
    with mounted(driver.prepare("key")) as path:
        write(f"{path}/f", 11 * MIB)
    with pytest.raises(OSError, match=r"data space .* is [0-9.]+% free, less than dm.min_free_space=60%") as refused:
        driver.prepare("other")
    assert refused.value.errno == errno.ENOSPC
    driver.close()
    opened(dm_min_free_space="10%").prepare("other")


@pytest.mark.parametrize("up", [False, True])
def test_the_base_grows(opened: Opener, up: bool) -> None:
    """Also while the pool is up, for whatever is made from now on: on nothing, and on layers of before."""
    driver = opened()
    driver.prepare("old")
    driver.commit("before", "old")
    if up:
        driver.prepare("held", "before")
    driver.close()
    driver = opened(dm_basesize="48M")
    for parent in ("", "before"):
        with mounted(driver.prepare(f"on-{parent}", parent)) as path:
            status = os.statvfs(path)
            assert 0.7 * 48 * MIB < status.f_blocks * status.f_frsize <= 48 * MIB
    if up:
        with mounted(driver.mounts("held")) as path:
            assert os.statvfs(path).f_blocks * os.statvfs(path).f_frsize <= 24 * MIB
    driver.check_invariants()
    with pytest.raises(Unavailable, match=r"dm.basesize=32M is less than the 48M"):
        opened(dm_basesize="32M")
    opened()  # it was not kept


@pytest.mark.parametrize("up", [False, True])
def test_options_that_may_change(opened: Opener, up: bool) -> None:
    driver = opened(dm_mountopt="noatime")
    [before] = driver.prepare("key")
    assert {"noatime", "discard"} <= set(before.options)
    if not up:
        driver.commit("base", "key")
    driver.close()
    driver = opened(dm_mountopt="nodiratime", dm_blkdiscard="false", dm_min_free_space="1%")
    [after] = driver.mounts("key") if up else driver.prepare("key", "base")
    assert "nodiratime" in after.options and not {"noatime", "discard"} & set(after.options)
    assert driver._settings.min_free_percent == 1
    driver.close()
    assert opened()._settings.mount_options == ("nodiratime",)


def test_a_layer_that_is_larger_than_the_base(opened: Opener) -> None:
    """What is said names the option, and what it says to do helps: also for a layer on one of before."""
    driver = opened()
    driver.prepare("first")
    driver.commit("below", "first")
    with mounted(driver.prepare("large", "below")) as path, pytest.raises(OSError, match="No space"):
        write(f"{path}/f", 30 * MIB)
    assert re.match(r"layers and containers have 24M each \(--storage-opt dm.basesize=", driver.how_to_make_room())
    driver.remove("large")
    driver.close()
    driver = opened(dm_basesize="64M")
    with mounted(driver.prepare("large", "below")) as path:
        write(f"{path}/f", 30 * MIB)
    driver.commit("above", "large")
    driver.check_invariants()


# Crashes of the machine, and of what is below.


def crash(driver: Driver) -> None:
    """As if the machine had stopped: the devices are gone, and nobody has said goodbye."""
    driver._store.close()
    for name in sorted(ours(), key=lambda name: name.endswith("-pool")):
        ioctl.remove(name)


def test_a_pool_that_was_not_shut_down_is_checked(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = opened()
    with mounted(driver.prepare("key")) as path:
        Path(path, "f").write_text("f")
    crash(driver)
    with monkeypatch.context() as patched:
        without_programs(patched)
        with pytest.raises(Unavailable, match=r"not shut down .* apt-get install thin-provisioning-tools"):
            opened().mounts("key")
    driver = opened()
    with mounted(driver.mounts("key")) as path:
        trees.assert_tree(path, {"f": "f"})
    crash(driver)
    metadata = Path(driver.root, "thin-pool", "metadata")
    whole = metadata.read_bytes()
    found = thinmeta.parse(whole[:4096])
    assert found is not None
    for block, says in (
        (0, r"has no metadata of a thin pool; if they are damaged, .*thin_repair -i .*metadata -o COPY"),
        (found.mapping_root, r"thin_check .*nothing was changed: .*thin_repair -i .*metadata -o COPY"),
    ):
        metadata.write_bytes(whole[: block * 4096] + bytes(100) + whole[block * 4096 + 100 :])
        damaged = opened()
        with pytest.raises(Unavailable, match=says):
            damaged.mounts("key")
        damaged.close()
        assert ours() == []
    metadata.write_bytes(whole)
    with mounted(opened().mounts("key")) as path:
        trees.assert_tree(path, {"f": "f"})


def test_a_pool_that_was_shut_down_is_not(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = opened()
    driver.prepare("key")
    driver.commit("base", "key")
    driver.close()
    without_programs(monkeypatch)
    driver = opened()
    driver.view("key", "base")
    driver.check_invariants()


def test_an_older_copy_of_the_store_is_found_out(opened: Opener) -> None:
    driver = opened()
    driver.prepare("key")
    driver.commit("base", "key")
    driver.close()
    store = Path(driver.root, "metadata.db")
    old = store.read_bytes()
    driver = opened()
    driver.prepare("key", "base")
    driver.remove("key")
    driver.close()
    new = store.read_bytes()
    store.write_bytes(old)
    with closing(opened()) as older, pytest.raises(Unavailable, match="one of them is an older copy"):
        older.prepare("key", "base")
    assert ours() == []
    store.write_bytes(new)


def test_who_dies_holding_devices_lets_them_go_on(opened: Opener) -> None:
    driver = opened()
    [mount] = driver.prepare("key")
    name = driver._thins.name(thin(driver, "key").device)
    ioctl.suspend(name)
    ioctl.suspend_pool(driver._pool.name)
    assert driver.mounts("key") == [mount]
    with mounted([mount]) as path:
        write(f"{path}/f", MIB)


# Others.


def mount(given: Sequence[Mount]) -> str:
    path = tempfile.mkdtemp()
    mount_all(given, path)
    return path


def unmount(path: str) -> None:
    unmount_all(path)
    os.rmdir(path)


def test_a_mount_that_has_leaked(driver: Driver) -> None:
    """Into a mount namespace that nobody can be asked to leave (moby#27381): the name is free at once, and the device
    goes when it is let go of there."""
    path = mount(driver.prepare("key"))
    told, tell = os.pipe()
    wait, go = os.pipe()

    def hold() -> None:
        processes.unshare(consts.CLONE_NEWNS)
        os.write(tell, b"x")
        os.close(go)
        os.read(wait, 1)

    child = in_child(hold)
    os.read(told, 1)
    with pytest.raises(InUse, match=f"key is mounted at {path}"):
        driver.remove("key")
    with pytest.raises(InUse, match="key is mounted at"):
        driver.commit("name", "key")
    unmount_all(path)  # and the mount point stays: to delete it would end the mount everywhere
    with pytest.raises(InUse, match="key is still in use"):
        driver.commit("name", "key")
    device = thin(driver, "key").device
    driver.remove("key")
    driver.cleanup()
    assert driver._thins.name(device) in ours()
    driver.prepare("key")
    assert thin(driver, "key").device != device
    for fd in (told, tell, wait, go):
        os.close(fd)
    assert child.wait() == 0
    os.rmdir(path)
    assert soon(lambda: ioctl.status(driver._thins.name(device)) is None)
    driver.cleanup()
    driver.check_invariants()


def test_without_devtmpfs(driver: Driver) -> None:
    """In a chroot's /dev nobody makes nodes, nor takes them away."""

    def run() -> None:
        processes.unshare(consts.CLONE_NEWNS)
        mounts.mount("none", "/", None, consts.MS_REC | consts.MS_PRIVATE)
        mounts.mount("tmpfs", "/dev", "tmpfs")
        for name, minor in (("null", 3), ("urandom", 9)):
            os.mknod(f"/dev/{name}", 0o20666, os.makedev(1, minor))
        mine = open_driver("devicemapper", driver.root)
        [mount] = mine.prepare("key")
        with mounted([mount]) as path:
            Path(path, "f").write_text("f")
        assert os.path.exists(mount.source)
        mine.remove("key")
        assert not os.path.exists(mount.source)
        mine.close()

    assert in_child(run).wait() == 0


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two block devices: for metadata, and for data."""
    paths = [tmp_path / name for name in ("metadata", "data")]
    for path, size in zip(paths, (4 * MIB, 64 * MIB), strict=True):
        path.touch()
        os.truncate(path, size)
    with loop.attached(str(paths[0])) as metadata, loop.attached(str(paths[1])) as data:
        yield metadata, data


def test_given_devices(opened: Opener, disks: tuple[str, str], tmp_path: Path) -> None:
    metadata, data = disks
    given = {"dm.metadatadev": metadata, "dm.datadev": data, "dm.basesize": "16M"}
    Path(metadata).write_bytes(b"something")
    driver = opened(given)
    with pytest.raises(Unavailable, match=f"something on {metadata}: .* by dm.directlvm_device_force=true"):
        driver.prepare("key")
    driver.close()
    assert Path(metadata).read_bytes()[:9] == b"something"
    driver = opened(dm_directlvm__device__force="true")
    with mounted(driver.prepare("key")) as path:
        Path(path, "f").write_text("f")
    driver.commit("base", "key")
    os.truncate(tmp_path / "data", 96 * MIB)
    loop.set_capacity(data)
    os.truncate(tmp_path / "metadata", 8 * MIB)
    loop.set_capacity(metadata)
    driver.close()
    for _ in range(2):  # it has grown; and is found again
        driver = opened()
        with mounted(driver.view("view", "base")) as path:
            trees.assert_tree(path, {"f": "f"})
            status = driver._pool.status()
            assert (status.total_data, status.total_metadata) == ((96 * MIB >> 16) - 1, 8 * MIB >> 12)
        driver.remove("view")
        driver.close()
    assert not os.path.exists(f"{driver.root}/thin-pool")
    empty(driver.root)  # before the disks go


def digests(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_devices_that_are_exchanged(opened: Opener, disks: tuple[str, str], tmp_path: Path) -> None:
    """A pool that was made is never made again: the kernel would, on metadata that begin with zeros."""
    metadata, data = tmp_path / "by-id-metadata", tmp_path / "by-id-data"

    def name(first: str, second: str) -> None:
        for link, device in ((metadata, first), (data, second)):
            link.unlink(missing_ok=True)
            link.symlink_to(device)

    name(*disks)
    driver = opened({"dm.metadatadev": str(metadata), "dm.datadev": str(data), "dm.basesize": "16M"})
    with mounted(driver.prepare("key")) as path:
        Path(path, "f").write_text("f")
    driver.commit("base", "key")
    driver.close()
    older = tmp_path / "older"
    shutil.copy(tmp_path / "metadata", older)
    driver = opened()
    driver.prepare("more", "base")
    driver.remove("more")
    driver.close()
    array, blank, small = tmp_path / "array", tmp_path / "blank", tmp_path / "small"
    array.write_bytes(bytes(4096) + os.urandom(4 * MIB - 4096))
    for path_, size in ((blank, 4 * MIB), (small, 32 * MIB)):
        path_.touch()
        os.truncate(path_, size)
    every = [tmp_path / "metadata", tmp_path / "data", older, array, blank, small]
    before = digests(*every)
    with loop.attached(str(older)) as first, loop.attached(str(array)) as second, loop.attached(str(blank)) as third, \
            loop.attached(str(small)) as fourth:  # fmt: skip
        exchanged = {
            disks[::-1]: "has no metadata of a thin pool",
            (second, disks[1]): "has no metadata of a thin pool",
            (third, disks[1]): "has no metadata of a thin pool",
            (first, disks[1]): "one of them is an older copy",
            (disks[0], fourth): "is smaller than the 64M that it had",
            (disks[0], second): "is smaller than the 64M that it had",
        }
        for devices, says in exchanged.items():
            name(*devices)
            driver = opened()
            for ask in (driver.view, driver.prepare):
                with pytest.raises(Unavailable, match=says) as refused:
                    ask("key", "base")
                assert "\n" not in str(refused.value)
            driver.close()
            assert ours() == []
            assert digests(*every) == before
        # Other names for the right ones are fine; for others they are not, and can be put right.
        name("/nowhere", "/nowhere")
        with closing(opened(dm_datadev=disks[1], dm_metadatadev=second)) as driver:
            with pytest.raises(Unavailable, match=f"{second} is not the metadata device"):
                driver.view("look", "base")
        right = {"dm_datadev": disks[1], "dm_metadatadev": disks[0]}
        driver = opened(**right)
        with mounted(driver.view("look", "base")) as path:
            trees.assert_tree(path, {"f": "f"})
        # While it is up.
        wrong = {**right, "dm_datadev": fourth}
        with closing(opened(**wrong)) as other, pytest.raises(Unavailable, match="their names have changed"):
            other.prepare("key", "base")
        opened(**right).close()
        driver.remove("look")
        driver.remove("base")
        driver.check_invariants()
        driver.close()
        assert digests(*every[2:]) == before[2:]


def test_a_device_that_is_in_use(opened: Opener, disks: tuple[str, str]) -> None:
    metadata, data = disks
    subprocess.run(["mkfs.ext4", "-q", data], check=True)
    with mounted([Mount("ext4", data)]) as place:
        given = {"dm.metadatadev": metadata, "dm.datadev": data, "dm.directlvm_device_force": "true"}
        with closing(opened(given)) as driver, pytest.raises(Unavailable, match=f"in use: it is mounted at {place}"):
            driver.prepare("key")
    assert Path(metadata).read_bytes() == bytes(4 * MIB)


def test_a_pool_of_an_older_version(opened: Opener, tmp_path: Path) -> None:
    """It has neither uuid nor label, and is known by its base; one without a base has no layers and is made again."""
    driver = opened()
    with mounted(driver.prepare("key")) as path:
        Path(path, "f").write_text("f")
    driver.commit("base", "key")
    driver.close()
    pool = tmp_path / "driver" / "thin-pool"
    forget_identity(driver.root)
    older = pool / "aside"
    other = tmp_path / "other"
    shutil.copytree(pool, other)
    os.rename(pool / "data", older)
    (pool / "data").touch()
    os.truncate(pool / "data", 256 * MIB)
    os.chmod(pool / "data", 0o600)
    with closing(opened()) as driver, pytest.raises(Unavailable, match="has not the metadata of what is on"):
        driver.view("look", "base")
    assert not any(Path(pool / "data").read_bytes())
    os.rename(older, pool / "data")
    for _ in range(2):
        driver = opened()
        with mounted(driver.view("look", "base")) as path:
            trees.assert_tree(path, {"f": "f"})
        driver.remove("look")
        driver.close()
    with open(pool / "metadata", "rb") as file:
        found = thinmeta.parse(file.read(4096))
    assert found is not None and found.uuid.hex() == driver._store.identity


def forget_identity(root: str) -> None:
    with open(f"{root}/thin-pool/metadata", "r+b") as file:
        block = bytearray(file.read(4096))
        block[16:32] = bytes(16)
        block[:4] = thinmeta.checksum(block).to_bytes(4, "little")
        file.seek(0)
        file.write(block)
    with closing(sqlite3.connect(f"{root}/metadata.db")) as store, store:
        store.execute("DELETE FROM marks")


def test_a_given_pool_that_is_exchanged_for_another(opened: Opener, tmp_path: Path) -> None:
    """It has the same name, and devices of the same numbers, which are not ours to delete."""
    name = "fuse-aufs-test"
    driver = opened({"dm.thinpooldev": name, "dm.basesize": "16M"})
    with pool_on_files(tmp_path, name, 4 * MIB, 64 * MIB):
        driver.prepare("key")
        driver.commit("base", "key")
        number = driver._pool.status().transaction_id
        driver.close()
    other = tmp_path / "other"
    other.mkdir()
    with pool_on_files(other, name, 4 * MIB, 64 * MIB, uuid="LVM-other"):
        for device in (1, 2):
            ioctl.message(name, f"create_thin {device}")
        for turn in range(number):
            ioctl.message(name, f"set_transaction_id {turn} {turn + 1}")
        driver = opened()
        for ask in (lambda: driver.prepare("key", "base"), lambda: driver.remove("base"), driver.cleanup):
            with pytest.raises(Unavailable, match=r"the pool is not the one that this root was made with"):
                ask()
        driver.close()
        for device in (1, 2):
            with pytest.raises(FileExistsError):
                ioctl.message(name, f"create_thin {device}")
    with pool_on_files(tmp_path, name, 4 * MIB, 64 * MIB, uuid="LVM-renamed"):  # known by its base
        driver = opened()
        assert [info.name for info in driver.walk()] == []
        driver.cleanup()
        driver.check_invariants()
        assert driver._pool.is_known()
        driver.close()


def test_a_given_pool(opened: Opener, tmp_path: Path) -> None:
    name = "fuse-aufs-test"
    driver = opened({"dm.thinpooldev": f"/dev/mapper/{name}", "dm.basesize": "16M"})
    with pytest.raises(Unavailable, match=f"no thin pool {name}"):
        driver.prepare("key")
    with pool_on_files(tmp_path, name, 4 * MIB, 64 * MIB):
        with mounted(driver.prepare("key")) as path:
            Path(path, "f").write_text("f")
        driver.commit("base", "key")
        driver.close()
        assert ours() == [name]
        driver = opened()
        with mounted(driver.view("view", "base")) as path:
            trees.assert_tree(path, {"f": "f"})
        driver.remove("view")
        driver.remove("base")
        driver.check_invariants()
        driver.close()
    assert ours() == []


def test_a_pool_that_is_in_use_is_not_taken(opened: Opener, driver: Driver) -> None:
    other = opened({"dm.thinpooldev": driver._pool.name})
    with pytest.raises(Unavailable, match="in use already"):
        other.prepare("key")
    other.close()


def test_it_is_let_go_of(opened: Opener) -> None:
    """close() takes down what nobody can mount any more, and leaves what somebody can: also to another process."""
    driver = opened()
    [mount] = driver.prepare("key")
    driver.close()
    with mounted([mount]) as path:
        Path(path, "f").write_text("f")
    driver = opened()
    driver.commit("base", "key")
    assert not os.path.exists(mount.source)
    driver.close()
    assert ours() == []


def test_the_space_of_what_is_removed_is_given_back(opened: Opener) -> None:
    driver = opened()
    driver.prepare("first")
    data = Path(driver.root, "thin-pool", "data")
    before = data.stat().st_blocks
    with mounted(driver.prepare("key")) as path:
        write(f"{path}/f", 8 * MIB)
    driver.commit("base", "key")
    assert data.stat().st_blocks > before + 8 * MIB // 512
    driver.remove("base")
    assert data.stat().st_blocks < before + 2 * MIB // 512
