"""The machine stops, or what is below has been put back to an older state."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from drivers.devicemapper import ioctl, thinmeta
from drivers.errors import Unavailable
from tests import trees
from tests.drivers.devicemapper.roots import MIB, Opener, crash, ours, thin, without_programs, write
from tests.mounting import mounted


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
