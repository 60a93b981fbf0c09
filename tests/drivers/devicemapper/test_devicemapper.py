"""Thin devices as a driver: in a kernel that has them (`python -m tests.vm`)."""

from __future__ import annotations

import errno
import linecache
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from drivers.api import Mount
from drivers.devicemapper import Driver, filesystem, ioctl, nodes
from drivers.errors import NotSupported, Unavailable
from tests import trees
from tests.contracts.snapshotter import SnapshotterContract
from tests.contracts.snapshotter.words import FULL
from tests.drivers.crashing import CrashContract
from tests.drivers.devicemapper.roots import MIB, OneRoot, Opener, ours, soon, thin, without_programs, write
from tests.mounting import mounted
from unionfs.linux import mounts


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
