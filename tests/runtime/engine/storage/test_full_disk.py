"""A container that fills the disk by itself, and `rm`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.catalog import probe
from drivers.disk import loop
from drivers.mounts.attached import mount_all, unmount_all
from tests.runtime.conftest import IMAGE, Runtime

pytestmark = [pytest.mark.needs("root", "loop", "cgroups", "program:mkfs.ext4"), pytest.mark.usefixtures("deadline")]

FILL = "for size in 1M 4k 512; do dd if=/dev/zero of=/log$size bs=$size 2>/dev/null; done; "
FILES = "n=0; while : >/tmp/$n; do n=$((n+1)); done 2>/dev/null; exit 5"


@pytest.mark.parametrize("reserved", ["0", "5"])
@pytest.mark.parametrize("driver", ["overlay2", "fuse-aufs"])
def test_rm_of_what_has_filled_the_disk(driver: str, reserved: str, rootfs_tar: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.touch()
    with open(image, "r+b") as file:
        file.truncate(96 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", reserved, "-E", "nodiscard", image], check=True, capture_output=True)
    place = tmp_path / "place"
    place.mkdir()
    with loop.attached(str(image)) as device:
        mount_all([Mount("ext4", device)], str(place))
    try:
        found = probe(driver, str(place))
        if not found.works:
            pytest.skip(f"{driver}: {found.reason}")
        runtime = Runtime(place / "root", tmp_path / "state", driver)
        runtime("import", rootfs_tar, IMAGE)
        done = runtime.call("run", "--network=none", "--name=full", IMAGE, "sh", "-c", FILL + FILES)
        assert done.returncode in (1, 2, 5), done.stderr  # the shell ends where it cannot redirect
        assert runtime("rm", "full") == "full\n"
        assert runtime.ids() == []
        assert runtime.run(IMAGE, "echo", "works") == "works\n"
    finally:
        unmount_all(str(place))


@pytest.fixture
def small(installation: Runtime, tmp_path: Path) -> Iterator[Runtime]:
    """An installation on a disk of 32 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], check=True)
    try:
        shutil.copytree(installation.root / "images", place / "images", symlinks=True)
        yield Runtime(place, tmp_path / "state", "overlay2")
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.needs("tmpfs", "overlay")
@pytest.mark.parametrize("remove", [False, True])
def test_a_full_disk(small: Runtime, remove: bool) -> None:
    """The command's exit code is told and kept, and the container can be removed, which is what makes space."""
    options = ["--network=none", "--name=full", *(["--rm"] if remove else [])]
    done = small.call("run", *options, IMAGE, "sh", "-c", "dd if=/dev/zero of=/fill bs=4k 2>/dev/null; exit 5")
    assert done.returncode == 5
    if not remove:
        assert small.status("full").startswith("Exited (5)")
        assert small("rm", "full") == "full\n"
    assert small.ids() == []
    assert small.run(IMAGE, "echo", "space") == "space\n"
