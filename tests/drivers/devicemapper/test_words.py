"""What devicemapper's driver says to the kernel and reads from it, bit by bit: needs neither kernel nor root."""

from __future__ import annotations

import os
import struct

import pytest

from drivers.api import Kind
from drivers.devicemapper import ioctl, records, status, superblock
from drivers.devicemapper.backing import Files
from drivers.devicemapper.driver import Driver
from drivers.devicemapper.own_pool import OwnPool
from drivers.devicemapper.settings import (
    DEFAULT_BASE,
    DEFAULT_DATA,
    DEFAULT_METADATA,
    FIXED,
    OPTIONS,
    RENAMED,
    Settings,
    parse_settings,
)
from drivers.errors import Unavailable
from drivers.graph.store import Store


def test_an_ioctl_is_as_linux_dm_ioctl_h_says() -> None:
    buffer = ioctl.request("pool", ioctl.DM_READONLY_FLAG, b"payload", target_count=1, event_nr=0xF << 16)
    assert len(buffer) == 16384
    assert buffer[:48] == bytes.fromhex(
        "04000000 00000000 00000000"  # version 4.0.0
        "00400000"  # data_size: the buffer, so that a reply fits
        "38010000"  # data_start: after struct dm_ioctl
        "01000000 00000000 01000000"  # target_count, open_count, flags: DM_READONLY_FLAG
        "00000f00 00000000"  # event_nr: udev's flags above a cookie of none; padding
        "00000000 00000000"  # dev
    )
    assert buffer[48:176] == b"pool".ljust(128, b"\0")
    assert buffer[176:312] == bytes(136)
    assert buffer[312:319] == b"payload"
    assert not any(buffer[319:])


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(OSError, match="name too long"):
        ioctl.request("x" * 128, 0, b"")


def test_udev_is_told_to_leave_the_devices_alone() -> None:
    """The lower half is the cookie that udev would have to give back: none."""
    assert ioctl.UDEV_FLAGS == 0x004F0000


def test_a_table_is_read() -> None:
    spec = struct.pack("=QQiI16s", 0, 2048, 0, 0, b"thin-pool") + b"0 10/1024 2/16 - rw\0rest"
    assert ioctl.parse_target(spec) == ioctl.Target(2048, "thin-pool", "0 10/1024 2/16 - rw")


def test_devices_are_listed() -> None:
    one = (struct.pack("=QI", 254 << 8 | 3, 24) + b"one\0").ljust(24, b"\0")
    two = struct.pack("=QI", 254 << 8 | 0x34 | 0x12 << 20, 0) + b"two\0"
    assert ioctl.parse_names(one + two) == {"one": os.makedev(254, 3), "two": os.makedev(254, 0x1234)}
    assert ioctl.parse_names(bytes(16)) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7 114/1024 221/8192 - rw discard_passdown error_if_no_space - 256 ",
         status.PoolStatus(7, 114, 1024, 221, 8192, "rw", needs_check=False)),
        ("3 20/512 64/64 - out_of_data_space discard_passdown queue_if_no_space - 1 ",
         status.PoolStatus(3, 20, 512, 64, 64, "out_of_data_space", needs_check=False)),
        ("0 512/512 2/64 12 ro no_discard_passdown error_if_no_space needs_check 1024 ",
         status.PoolStatus(0, 512, 512, 2, 64, "ro", needs_check=True)),
        # Before Linux 3.18 it ended with the mode.
        ("1 4/9 2/8 - rw", status.PoolStatus(1, 4, 9, 2, 8, "rw", needs_check=False)),
        ("Fail", status.PoolStatus(0, 0, 0, 0, 0, "ro", needs_check=True, failed=True)),
    ],
)  # fmt: skip
def test_the_status_of_a_pool(text: str, expected: status.PoolStatus) -> None:
    assert status.parse_pool(text) == expected


@pytest.mark.parametrize("text", ["", "x 1/2 3/4 - rw", "1 2 3/4 - rw", "1 1/2 3/4"])
def test_a_status_that_no_kernel_gives(text: str) -> None:
    with pytest.raises(Unavailable, match="not understood"):
        status.parse_pool(text)


def test_free_space_is_what_is_not_used() -> None:
    found = status.parse_pool("0 256/1024 63/64 - rw discard_passdown error_if_no_space - 1")
    assert found.free_metadata_percent == 75
    assert found.free_data_percent == 100 / 64


def test_the_status_of_a_thin_device() -> None:
    assert status.parse_thin("2048 4095") == 2048
    assert status.parse_thin("0 -") == 0
    assert status.parse_thin("Fail") is None
    with pytest.raises(Unavailable, match="not understood"):
        status.parse_thin("-")


def test_defaults_are_dockers() -> None:
    settings = parse_settings({})
    assert (settings.filesystem, settings.block_size, settings.min_free_percent) == ("ext4", 64 << 10, 10)
    assert (DEFAULT_BASE, DEFAULT_DATA, DEFAULT_METADATA) == (10 << 30, 100 << 30, 2 << 30)
    assert settings.discard_deleted
    assert not parse_settings({"dm.thinpooldev": "vg-pool"}).discard_deleted


def test_options_are_read() -> None:
    settings = parse_settings({
        "dm.fs": "xfs", "dm.blocksize": "1G", "dm.basesize": "20G", "dm.min_free_space": "2.5%",
        "dm.mkfsarg": "-i 'size=512'", "dm.mountopt": "noatime,inode64", "dm.datadev": "/dev/a",
        "dm.metadatadev": "/dev/b", "dm.blkdiscard": "true",
    })  # fmt: skip
    assert settings == Settings(
        "/dev/a", "/dev/b", "", 20 << 30, "xfs", 1 << 30, 2.5, ("-i", "size=512"), ("noatime", "inode64"),
        None, None, True, False,
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dm.fs": "zfs"}, "dm.fs=zfs"),
        ({"dm.blocksize": "96K"}, "multiple of 64K"),
        ({"dm.blocksize": "2G"}, "multiple of 64K"),
        ({"dm.basesize": "1M"}, "dm.basesize=1M is too small"),
        ({"dm.basesize": "200M", "dm.fs": "xfs"}, "too small"),
        ({"dm.basesize": "much"}, "dm.basesize=much"),
        ({"dm.min_free_space": "10"}, "percentage"),
        ({"dm.min_free_space": "100%"}, "percentage"),
        ({"dm.loopmetadatasize": "1M"}, "too small"),
        ({"dm.datadev": "/dev/a"}, "go together"),
        ({"dm.datadev": "/dev/a", "dm.metadatadev": "/dev/b", "dm.thinpooldev": "p"}, "leave out dm.datadev"),
        ({"dm.thinpooldev": "p", "dm.loopdatasize": "1G"}, "leave it out"),
        ({"dm.mkfsarg": "'"}, "split into words"),
        ({"dm.blkdiscard": "yes"}, "true or false"),
        ({"dm.directlvm_device_force": "1"}, "dm.directlvm_device_force=1 must be true or false"),
    ],
)
def test_options_that_cannot_be(given: dict[str, str], said: str) -> None:
    with pytest.raises(Unavailable, match=said) as refused:
        parse_settings(given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kept", "given", "said"),
    [
        ({"dm.datadev": "/dev/a", "dm.metadatadev": "/dev/b"}, {"dm.loopdatasize": "1G"}, "leave it out"),
        ({"dm.fs": "xfs"}, {"dm.basesize": "100M"}, "too small"),
        ({"dm.blocksize": "64M"}, {"dm.loopdatasize": "32M"}, "too small"),
    ],
    ids=["a size and devices", "a base for xfs", "less than a block"],
)
def test_what_goes_with_nothing_that_is_kept_is_not_kept(
    kept: dict[str, str], given: dict[str, str], said: str, tmp_path: os.PathLike[str]
) -> None:
    """Or the root could never be opened again: there is no taking an option back."""
    Driver(os.fspath(tmp_path), kept).close()
    for _ in range(2):
        with pytest.raises(Unavailable, match=said):
            Driver(os.fspath(tmp_path), given)
    driver = Driver(os.fspath(tmp_path), {})
    assert driver._store.options == kept
    driver.close()


@pytest.mark.parametrize("kept", [{"dm.min_free_space": "5%"}, {"dm.fs": "xfs", "dm.blocksize": "128K"}], ids=str)
def test_what_the_pool_is_made_with(kept: dict[str, str], tmp_path: os.PathLike[str]) -> None:
    """Once there is a root with settings, none of these is changed, nor put beside others."""
    Driver(os.fspath(tmp_path), kept).close()
    changed = (
        {"dm.fs": "ext4"}, {"dm.mkfsarg": "-I 512"}, {"dm.blocksize": "64K"}, {"dm.thinpooldev": "pool"},
        {"dm.datadev": "/dev/a", "dm.metadatadev": "/dev/b"},
    )  # fmt: skip
    for given in changed:
        with pytest.raises(Unavailable, match=rf"{next(iter(given))} .* cannot be changed any more: leave it out"):
            Driver(os.fspath(tmp_path), given)
    driver = Driver(os.fspath(tmp_path), {})
    assert driver._store.options == kept
    driver.close()


def test_a_kernel_without_it_is_what_is_named(tmp_path: os.PathLike[str]) -> None:
    """And nothing is to be repaired: a root whose module has gone is sound."""
    if ioctl._misc_number() is not None:
        pytest.skip("this kernel has device-mapper")
    driver = Driver(os.fspath(tmp_path), {})
    with pytest.raises(OSError, match="this kernel has no device-mapper: modprobe dm_mod"):
        driver.prepare("key")
    driver.cleanup()
    assert list(driver.walk()) == []
    driver.close()


def test_every_option_that_is_fixed_is_one() -> None:
    assert set(OPTIONS) >= FIXED >= RENAMED


def test_an_ext4_superblock() -> None:
    head = bytearray(4096)
    struct.pack_into("<II", head, 1024, 6144, 24576)
    struct.pack_into("<III", head, 1024 + 16, 6133, 1, 0)
    struct.pack_into("<H", head, 1024 + 56, 0xEF53)
    struct.pack_into("<I", head, 1024 + 96, superblock.EXT4_FEATURE_INCOMPAT_RECOVER | 0x80)
    head[1024 + 104 : 1024 + 120] = bytes(range(16))
    struct.pack_into("<I", head, 1024 + 0x150, 1)
    expected = superblock.Superblock("ext4", bytes(range(16)), 1024, (1 << 32 | 24576) * 1024, 11, True)
    assert superblock.parse(bytes(head)) == expected


def test_an_xfs_superblock() -> None:
    head = bytearray(4096)
    struct.pack_into(">4sIQ", head, 0, b"XFSB", 4096, 81920)
    head[32:48] = bytes(range(16))
    head[127] = 25
    struct.pack_into(">QQ", head, 128, 64, 61)
    assert superblock.parse(bytes(head)) == superblock.Superblock(
        "xfs", bytes(range(16)), 4096, 320 << 20, 3, None, 25
    )


def test_numbers_are_given_again_when_the_last_is_taken(tmp_path: os.PathLike[str]) -> None:
    store = Store(os.path.join(tmp_path, "store"), "devicemapper", records.SCHEMA)
    with store.write() as transaction:
        assert [records.begin(transaction, 1, 3) for _ in range(3)] == [1, 2, 3]
        for free in (1, 2):
            records.forget(transaction, free)
            assert records.begin(transaction, 1, 3) == free
        with pytest.raises(Unavailable, match="no number left"):
            records.begin(transaction, 1, 3)
    store.close()


def test_a_snapshot_cannot_lose_its_device(tmp_path: os.PathLike[str]) -> None:
    """The graph and the devices are one store: what would tear them apart is not committed."""
    store = Store(os.path.join(tmp_path, "store"), "devicemapper", records.SCHEMA)
    with store.write() as transaction:
        number = transaction.create("key", "", Kind.ACTIVE, {})
        records.become_layer(transaction, records.begin(transaction, 1, 3), number)
        assert records.needed(transaction) == {1}
    with pytest.raises(Unavailable, match="FOREIGN KEY"), store.write() as transaction:
        transaction.remove("key")
    with store.write() as transaction:
        transaction.remove("key")
        records.retire(transaction, 1)
        assert records.needed(transaction) == set()
    with store.read() as transaction:
        assert [device.device for device in records.in_role(transaction, "removing")] == [1]
    store.close()


def test_no_superblock() -> None:
    assert superblock.parse(bytes(4096)) is None


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("0 10/100 1/100 - rw - error_if_no_space - 1", None),
        ("0 10/100 91/100 - rw - error_if_no_space - 1", "data space of the thin pool is 9.0% free.*dm.loopdatasize"),
        ("0 95/100 1/100 - rw - error_if_no_space - 1", "metadata space .* 5.0% free.*dm.loopmetadatasize"),
        ("0 10/100 100/100 - out_of_data_space - error_if_no_space - 1", "data space of the thin pool is full"),
        ("0 100/100 1/100 - ro - error_if_no_space - 1", "metadata space of the thin pool is full"),
        ("0 10/100 1/100 - ro - error_if_no_space needs_check 1", "need a check.*stop the containers"),
        ("Fail", "need a check"),
    ],
)
def test_what_is_wrong_with_a_pool(said: str, what: str | None, tmp_path: os.PathLike[str]) -> None:
    """A pool that is there in words only: the sentences are what is tested."""
    settings = parse_settings({})

    class Said(OwnPool):
        def status(self) -> status.PoolStatus:
            return status.parse_pool(said)

        def grow(self) -> None:
            pass

    os.mkdir(os.path.join(tmp_path, "thin-pool"))
    store = Store(os.path.join(tmp_path, "metadata.db"), "devicemapper", records.SCHEMA)
    pool = Said("pool", settings, store, Files(str(tmp_path), settings))
    store.close()
    if what is None:
        pool.check_space()
        return
    with pytest.raises((OSError, Unavailable), match=what) as refused:
        pool.check_space()
    assert "\n" not in str(refused.value)
