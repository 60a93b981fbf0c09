"""What a root is told to use: is it ours, and is it the one of last time?"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.catalog import open_driver, probe
from drivers.disk import ownership
from drivers.errors import Unavailable
from drivers.mounts.attached import mount_all, unmount_all
from tests import trees
from tests.children import in_child
from unionfs.linux import consts, processes

pytestmark = pytest.mark.needs("root", "tmpfs")

SOMEBODY = 12345


@pytest.fixture(params=["fuse-aufs", "overlay2", "vfs"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    chosen: str = request.param
    found = probe(chosen, str(tmp_path))
    if not found.works:
        pytest.skip(f"{chosen}: {found.reason}")
    return chosen


def root_with_a_layer(name: str, root: Path) -> Path:
    driver = open_driver(name, str(root))
    driver.prepare("key")
    driver.commit("base", "key")
    driver.close()
    return root


def is_whole(name: str, root: Path) -> bool:
    driver = open_driver(name, str(root))
    try:
        driver.cleanup()
        driver.check_invariants()
        return [info.name for info in driver.walk()] == ["base"]
    finally:
        driver.close()


# The snapshots' directory.


@pytest.fixture
def root(name: str, tmp_path: Path) -> Iterator[Path]:
    """With a layer; what a test mounts at its snapshots is unmounted."""
    root = root_with_a_layer(name, tmp_path / "root")
    yield root
    unmount_all(str(root / "snapshots"))


def test_a_disk_that_is_mounted_over_the_layers(name: str, root: Path) -> None:
    mount_all([Mount("tmpfs", "tmpfs")], str(root / "snapshots"))
    with pytest.raises(Unavailable, match=r"snapshots are not those of this root .*: is another disk mounted there"):
        open_driver(name, str(root))
    assert os.listdir(root / "snapshots") == []
    unmount_all(str(root / "snapshots"))
    assert is_whole(name, root)


def test_layers_of_another_root_are_not_deleted(name: str, root: Path, tmp_path: Path) -> None:
    other = root_with_a_layer(name, tmp_path / "other")
    Path(other, "snapshots", "1", "fs", "theirs").write_text("theirs")
    before = trees.read(str(other / "snapshots"))
    mount_all([Mount("bind", str(other / "snapshots"))], str(root / "snapshots"))
    with pytest.raises(Unavailable, match="snapshots are those of another store"):
        open_driver(name, str(root))
    assert trees.read(str(other / "snapshots")) == before
    unmount_all(str(root / "snapshots"))
    assert is_whole(name, root) and is_whole(name, other)


@pytest.mark.parametrize("how", ["symlink", "empty", "another user's"])
def test_the_layers_are_somewhere_else(name: str, root: Path, tmp_path: Path, how: str) -> None:
    os.rename(root / "snapshots", tmp_path / "aside")
    if how == "symlink":
        (root / "snapshots").symlink_to(tmp_path / "aside")
    else:
        (root / "snapshots").mkdir()
        if how != "empty":
            os.chown(root / "snapshots", SOMEBODY, -1)
    with pytest.raises(Unavailable, match=r"symbolic link|not those of this root|belongs to the user") as refused:
        open_driver(name, str(root))
    assert "\n" not in str(refused.value)
    (root / "snapshots").unlink() if how == "symlink" else (root / "snapshots").rmdir()
    os.rename(tmp_path / "aside", root / "snapshots")
    assert is_whole(name, root)


def test_a_root_of_an_older_version_is_marked(name: str, root: Path, tmp_path: Path) -> None:
    """Unless its layers are not there."""
    (root / "snapshots" / "identity").unlink()
    with sqlite3.connect(root / "metadata.db") as store:
        store.execute("DELETE FROM marks")
    store.close()
    os.rename(root / "snapshots", tmp_path / "aside")
    with pytest.raises(Unavailable, match="not those of this root"):
        open_driver(name, str(root))
    (root / "snapshots").rmdir()
    os.rename(tmp_path / "aside", root / "snapshots")
    assert is_whole(name, root)
    assert len((root / "snapshots" / "identity").read_text()) == 33


@pytest.mark.parametrize("how", ["a symbolic link", "somebody's", "a directory"])
def test_a_store_that_is_no_file_of_ours(how: str, name: str, root: Path, tmp_path: Path) -> None:
    store, aside = root / "metadata.db", tmp_path / "aside"
    os.rename(store, aside)
    if how == "a symbolic link":
        store.symlink_to(aside)
    elif how == "a directory":
        store.mkdir()
    else:
        shutil.copy(aside, store)
        os.chown(store, SOMEBODY, -1)
    with pytest.raises(Unavailable, match=r"is not a regular file|belongs to the user"):
        open_driver(name, str(root))
    store.rmdir() if how == "a directory" else store.unlink()
    os.rename(aside, store)
    assert is_whole(name, root)


# The way to a root.


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


def refused(root: Path) -> str:
    before = trees.read(str(root.parent))
    with pytest.raises(Unavailable) as error:
        open_driver("vfs", str(root))
    assert trees.read(str(root.parent)) == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("there", [False, True], ids=["missing", "there"])
def test_a_root_that_others_can_replace(home: Path, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    root = home / "root"
    if there:
        root_with_a_layer("vfs", root)
    for mode, who in ((0o777, "everybody"), (0o775, f"group {SOMEBODY}")):
        os.chown(home, 0, SOMEBODY)
        os.chmod(home, mode)
        assert f"{home} can be written to by {who}" in refused(root)
    os.chown(home, SOMEBODY, 0)
    os.chmod(home, 0o755)
    assert f"{home} belongs to the user {SOMEBODY}" in refused(root)
    monkeypatch.setenv("SUDO_UID", str(SOMEBODY))
    assert is_whole("vfs", root_with_a_layer("vfs", root) if not there else root)


def test_a_root_in_a_sticky_directory(home: Path) -> None:
    os.chmod(home, 0o1777)
    assert is_whole("vfs", root_with_a_layer("vfs", home / "root"))
    # Somebody made it before we could.
    (home / "theirs").mkdir()
    os.chown(home / "theirs", SOMEBODY, SOMEBODY)
    assert f"{home}/theirs belongs to the user {SOMEBODY}" in refused(home / "theirs")


def test_a_root_behind_a_link(home: Path, tmp_path: Path) -> None:
    root = root_with_a_layer("vfs", tmp_path / "root")
    (home / "ours").symlink_to(tmp_path)
    assert is_whole("vfs", home / "ours" / "root")
    os.chmod(home, 0o1777)
    (home / "theirs").symlink_to(tmp_path)
    os.lchown(home / "theirs", SOMEBODY, SOMEBODY)
    assert f"{home}/theirs is a symbolic link of the user {SOMEBODY}" in refused(home / "theirs" / "root")
    assert is_whole("vfs", root)


def test_what_is_above_a_new_root_is_closed_to_others_whatever_the_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        root = root_with_a_layer("vfs", home / "a" / "b")
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o777) for path in (home / "a", root)] == ["0o755", "0o700"]
    assert is_whole("vfs", root)


def test_a_root_on_a_disk_that_is_not_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be begun anew in the mount point, and nobody would see why everything is gone."""
    place = tmp_path / "the disk"
    place.mkdir()
    table = tmp_path / "fstab"
    table.write_text(f"# a comment\n\n/dev/sdx1  none swap\n/dev/disk/by-label/d  {place} ext4 defaults 0 2\n".replace(
        "the disk", "the\\040disk"))  # fmt: skip
    monkeypatch.setattr(ownership, "FSTAB", str(table))
    with pytest.raises(Unavailable, match=f"nothing is mounted at {place}, where .*fstab has /dev/disk/by-label/d"):
        open_driver("vfs", str(place / "root"))
    assert os.listdir(place) == []
    mount_all([Mount("tmpfs", "tmpfs")], str(place))
    try:
        root_with_a_layer("vfs", place / "root")
        assert is_whole("vfs", place / "root")
    finally:
        unmount_all(str(place))
    root_with_a_layer("vfs", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere")


def test_in_a_user_namespace_the_machines_directories_are_trusted(tmp_path: Path) -> None:
    """Those of users that are not in it: it cannot be told who they are."""
    os.chmod(tmp_path, 0o755)
    os.chown(tmp_path, SOMEBODY, SOMEBODY)

    def look() -> None:
        processes.unshare(consts.CLONE_NEWUSER)
        Path("/proc/self/uid_map").write_text("0 0 1")
        ownership.check_way(str(tmp_path / "root"))

    assert in_child(look).wait() == 0
    with pytest.raises(Unavailable, match="belongs to the user"):
        ownership.check_way(str(tmp_path / "root"))
    os.chown(tmp_path, 0, 0)
