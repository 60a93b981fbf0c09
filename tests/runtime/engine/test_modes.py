"""Nobody but root looks into an installation: containers' variables, layers with set-id programs (CVE-2021-41091)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.conftest import Runtime

pytestmark = pytest.mark.needs("root")

DRIVERS = ("fuse-aufs", "overlay2", "vfs")


def _open_to_others(place: Path) -> Iterator[str]:
    """What group or others may do anything with, but for what is in layers, which is the containers'."""
    for directory, directories, files in os.walk(place):
        if "/snapshots/" in directory and os.path.basename(directory) == "fs":
            directories.clear()
            continue
        for name in (".", *files):
            path = os.path.normpath(os.path.join(directory, name))
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode) and stat.S_IMODE(mode) & 0o077:
                yield f"{stat.filemode(mode)} {os.path.relpath(path, place)}"


@pytest.fixture
def loosely(runtime: Runtime, rootfs_tar: Path, tmp_path: Path) -> Iterator[Runtime]:
    """A new installation, made and used by somebody whose umask is 0, with a container running on each driver."""
    fresh = Runtime(tmp_path / "root", tmp_path / "state")
    before = os.umask(0)
    try:
        fresh("import", rootfs_tar, "box")
        for name in DRIVERS:
            fresh.on(name)("run", "-d", "--name", f"on-{name}", "-e", "A=secret", "box", "sleep", "600")
        fresh("run", "--name", "ended", "--network", "none", "box", "echo", "secret")
        yield fresh
    finally:
        os.umask(before)
        fresh("rm", "-f", *(f"on-{name}" for name in DRIVERS), "ended")


def test_everything_is_roots_alone(loosely: Runtime) -> None:
    assert [*_open_to_others(loosely.root), *_open_to_others(loosely.state)] == []


def test_what_an_older_version_left_open_is_closed(loosely: Runtime) -> None:
    """By the first command that opens the installation. What the user said for --root may be a directory with other
    things in it: that stays as it is."""
    mine = [loosely.root / name for name in ("containers", "drivers", "images", "network")]
    mine.append(loosely.state / "containers")
    for place in (loosely.root, loosely.state, *mine):
        place.chmod(0o755)
    loosely("ps")
    assert [stat.filemode(place.stat().st_mode) for place in mine] == ["drwx------"] * 5
    assert [stat.S_IMODE(place.stat().st_mode) for place in (loosely.root, loosely.state)] == [0o755] * 2


def test_a_containers_umask_and_a_missing_volume_are_as_ever(runtime: Runtime, tmp_path: Path) -> None:
    assert runtime.run("-v", f"{tmp_path}/a/b:/v", "box", "sh", "-c", "umask; mkdir /tmp/d; stat -c %a /tmp/d /v") == (
        "0022\n755\n755\n"
    )
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755


@pytest.mark.parametrize("name", ["containers", "network"])
def test_a_directory_that_is_somebody_elses_is_refused(name: str, tmp_path: Path) -> None:
    """What is recorded there would be believed, and it may be a link to what is to be left as it is."""
    fresh = Runtime(tmp_path / "root", tmp_path / "state")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    fresh.root.mkdir()
    (fresh.root / name).symlink_to(elsewhere)
    os.lchown(fresh.root / name, 65534, 65534)
    assert "is a symbolic link of the user nobody" in fresh.refused("ps", "-a", code=1)
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755
    assert list(elsewhere.iterdir()) == []
