"""Pools and disks that are given, exchanged, taken by others, or wanted where others are in the way."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.catalog import open_driver
from drivers.devicemapper import Driver, ioctl, thinmeta
from drivers.disk import loop
from drivers.errors import InUse, Unavailable
from drivers.mounts.attached import unmount_all
from tests import trees
from tests.children import in_child
from tests.drivers.devicemapper.roots import MIB, Opener, digests, empty, mount, ours, pool_on_files, soon, thin, write
from tests.mounting import mounted
from unionfs.linux import consts, mounts, processes


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
    with closing(opened()) as driver, pytest.raises(Unavailable, match="does not have the metadata of what is on"):
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
