"""Drivers by name, and sentences on whether they work."""

from __future__ import annotations

import fcntl
import os
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

import drivers
from drivers import catalog
from drivers.api import Mount
from drivers.catalog import NAMES, open_driver, options_of, probe
from drivers.errors import Unavailable
from tests.children import in_child
from tests.mounting import mounted


def test_the_names() -> None:
    """Ours is the first of them; and every driver that there is can be chosen."""
    assert NAMES[0] == "fuse-aufs"
    modules = [f"drivers.{module.name}" for module in pkgutil.iter_modules(drivers.__path__)]
    assert {name for name in modules if hasattr(import_module(name), "Driver")} == set(catalog.MODULES.values())


@pytest.mark.needs("root")
def test_a_new_driver_is_a_module_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_new_driver.py").write_text(
        "from drivers import vfs\n"
        "from drivers.vfs import probe\n"
        "OPTIONS = {'new.word': 'a word'}\n"
        "class Driver(vfs.Driver):\n"
        "    NAME = 'new'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(catalog.MODULES, "new", "a_new_driver")
    root = str(tmp_path / "root")
    assert probe("new", root).works
    assert options_of("new") == {"new.word": "a word"}
    with pytest.raises(Unavailable, match=r"has no option 'other'; it has new\.word"):
        open_driver("new", root, {"other": "x"})
    driver = open_driver("new", root, {"new.word": "x"})
    driver.prepare("key")
    driver.commit("name", "key")
    driver.close()
    with pytest.raises(Unavailable, match="belongs to the driver new, not vfs"):
        open_driver("vfs", root)


@pytest.mark.needs("overlay", "fuse")
@pytest.mark.parametrize("name", NAMES)
def test_a_driver_that_works_says_how(name: str, tmp_path: Path) -> None:
    """Also for a root that does not exist yet; asking leaves nothing."""
    found = probe(name, str(tmp_path / "not" / "yet"))
    assert os.listdir(tmp_path) == []
    if not found.works:
        assert re.fullmatch(r"[^\n]+[^.\n]", found.reason)
        pytest.skip(f"{name}: {found.reason}")
    assert re.fullmatch(r"[\w ,;().'-]+, on [a-z0-9]+", found.reason)


@pytest.mark.needs("overlay", "fuse")
@pytest.mark.parametrize("name", NAMES)
def test_a_place_by_another_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    works, reason = probe(name, str(tmp_path / "link"))
    if not works:
        pytest.skip(f"{name}: {reason}")
    open_driver(name, str(tmp_path / "link" / "root")).close()
    assert os.listdir(tmp_path / "real") == ["root"]


@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_place(name: str, tmp_path: Path) -> None:
    with mounted([Mount("bind", str(tmp_path), ("ro",))]) as path:
        found = probe(name, f"{path}/root")
        assert (found.works, found.reason) == (False, f"cannot write to {path}: Read-only file system")
        with pytest.raises(Unavailable, match=f"storage driver {name} does not work at {path}/root: cannot write"):
            open_driver(name, f"{path}/root")


@pytest.mark.needs("overlay")
def test_an_overlay_on_an_overlay_on_an_overlay(tmp_path: Path) -> None:
    """The kernel stacks two deep (FILESYSTEM_MAX_STACK_DEPTH); the probe finds that out before any container does."""
    from drivers.overlay2 import overlay

    for name in ("l0", "l1", "u", "w"):
        (tmp_path / name).mkdir()
    with mounted([overlay([str(tmp_path / "l0")], str(tmp_path / "u"), str(tmp_path / "w"))]) as path:
        found = probe("overlay2", path)
        assert not found.works
        assert "overlay" in found.reason and "\n" not in found.reason


def test_nobody_but_root(tmp_path: Path) -> None:
    def ask() -> None:
        os.chmod(tmp_path, 0o777)
        os.setuid(65534)
        for name in NAMES:
            assert probe(name, str(tmp_path)) == (False, "mounting needs root")

    assert in_child(ask).wait() == 0


def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    for ask in (probe, open_driver):
        with pytest.raises(Unavailable, match=r"no storage driver 'zfs3'; there are fuse-aufs, overlay2, vfs.*"):
            ask("zfs3", str(tmp_path))


@pytest.mark.needs("overlay")
def test_a_root_that_is_anothers(tmp_path: Path) -> None:
    open_driver("vfs", str(tmp_path / "root")).close()
    with pytest.raises(Unavailable, match="belongs to the driver vfs, not overlay2"):
        open_driver("overlay2", str(tmp_path / "root"))


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(Unavailable, match=r"cannot use .*root: (File exists|Not a directory)"):
        open_driver("vfs", str(tmp_path / "root"))


def test_what_a_killed_probe_left_goes_with_the_next(tmp_path: Path) -> None:
    """And what another process is just trying stays."""
    (tmp_path / ".fuse-aufs-probe-dead" / "lower").mkdir(parents=True)
    held = tmp_path / ".fuse-aufs-probe-held"
    held.mkdir()
    fd = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert probe("vfs", str(tmp_path / "root")).works
    finally:
        os.close(fd)
    assert os.listdir(tmp_path) == [held.name]
    held.rmdir()


def test_what_a_probe_left_before_there_was_a_root(tmp_path: Path) -> None:
    (tmp_path / ".fuse-aufs-probe-dead").mkdir()
    root = tmp_path / "root" / "drivers" / "vfs"
    root.mkdir(parents=True)
    assert probe("vfs", str(root)).works
    assert os.listdir(tmp_path) == ["root"]
