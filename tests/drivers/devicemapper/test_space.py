"""Space of a thin pool: used up, too little, more of it, and what layers and containers are given."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from drivers.errors import Unavailable
from tests.drivers.devicemapper.roots import MIB, Opener, mount, unmount, write
from tests.mounting import mounted


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
