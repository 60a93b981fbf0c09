"""What a running container keeps of the host's mounts: nothing, so that what is older than it can be unmounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.mounting import Union
from tests.runtime.conftest import IMAGE, Runtime
from tests.runtime.containers import LOOP, start
from unionfs.linux import consts, mounts

pytestmark = pytest.mark.needs("root", "loop", "program:mkfs.ext4")


@pytest.fixture(params=["private", "shared"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory whose mounts are private, or shared as systemd has it with all of them."""
    mounts.mount(str(tmp_path), str(tmp_path), None, consts.MS_BIND)
    mounts.mount("none", str(tmp_path), None, consts.MS_SHARED if request.param == "shared" else consts.MS_PRIVATE)
    yield tmp_path
    mounts.umount2(str(tmp_path), consts.MNT_DETACH)


@contextmanager
def disk(place: Path) -> Iterator[tuple[str, str]]:
    """A file system on a loop device: the device, and where it is mounted; taken down again if it is still there."""
    with open(place / "disk", "wb") as image:
        image.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", place / "disk"], check=True)
    (place / "mounted").mkdir()
    attach = ["losetup", "--find", "--show", str(place / "disk")]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    with ExitStack() as held:
        held.callback(subprocess.run, ["losetup", "--detach", device], capture_output=True)
        mounts.mount(device, str(place / "mounted"), "ext4")
        yield device, str(place / "mounted")
        if mounts.mounted_at(str(place / "mounted")):
            mounts.umount2(str(place / "mounted"), consts.MNT_DETACH)


def backing_file(device: str) -> bool:
    return os.path.exists(f"/sys/block/{os.path.basename(device)}/loop/backing_file")


def seen_elsewhere(path: str) -> list[str]:
    """Processes in another mount namespace than ours, in which something is mounted below `path`, this test's own."""
    ours = os.stat("/proc/self/ns/mnt").st_ino
    seeing = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}/ns/mnt").st_ino == ours:
                continue
            if any(f"{point.target}/".startswith(f"{path}/") for point in mounts.mountinfo(pid)):
                seeing.append(f"{pid}: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
        except OSError:
            continue  # it has ended
    return seeing


def test_what_is_older_than_a_container_can_be_unmounted(each_driver: Runtime, place: Path) -> None:
    for name in ("lower", "upper"):
        (place / name).mkdir()
    union = Union(str(place), [str(place / "lower"), str(place / "upper")]).mount()
    with disk(place) as (device, mounted):
        try:
            start(each_driver, "younger", LOOP)
            assert seen_elsewhere(str(place)) == []
            union.unmount()  # fails when its server does not end
            mounts.umount2(mounted)
            subprocess.run(["losetup", "--detach", device], check=True)
            assert not backing_file(device), "something has the file system in use"
        finally:
            each_driver("rm", "-f", "younger")
            union.close()


def test_the_root_of_a_container_is_nobody_elses(each_driver: Runtime) -> None:
    """Nor is it kept by who makes a mount namespace meanwhile."""
    start(each_driver, "alone", LOOP)
    root = next(point for point in mounts.mountinfo(each_driver.pid("alone")) if point.target == "/")
    ours = mounts.mountinfo()
    with subprocess.Popen(["unshare", "-m", "--propagation=private", "sleep", "600"]) as other:
        try:
            each_driver("rm", "-f", "alone")
        finally:
            other.kill()
    assert [point for point in ours if point.target.startswith(str(each_driver.state))] == []
    if root.fstype in ("overlay", "fuse.unionfs"):
        assert [point for point in ours if point.device == root.device] == []


def test_a_volume_is_kept(runtime: Runtime, place: Path) -> None:
    """What the container was given is its own as long as it runs, with all that was mounted below it."""
    (place / "volume").mkdir()
    with disk(place / "volume") as (device, mounted):
        Path(mounted, "file").write_text("there\n")
        start(runtime, "owner", LOOP, "-v", f"{place}/volume:/v")
        mounts.umount2(mounted)
        assert runtime("exec", "owner", "cat", "/v/mounted/file") == "there\n"
        runtime("rm", "-f", "owner")
        subprocess.run(["losetup", "--detach", device], check=True)
        assert not backing_file(device)


def test_what_a_container_mounts_is_not_on_the_host(each_driver: Runtime, place: Path) -> None:
    """Where the store's own mount is shared, a copy of it is its peer, wherever it is attached."""
    runtime = Runtime(place / "root", place / "state", each_driver.driver)
    (place / "volume").mkdir()
    subprocess.run(each_driver.command("save", "-o", place / "box.tar", IMAGE), check=True)
    runtime("load", "-q", "-i", place / "box.tar")
    start(runtime, "mounting", LOOP, "-v", f"{place}/volume:/deep/volume")
    try:
        below = [point.target for point in mounts.mountinfo() if point.target.startswith(f"{place}/")]
        assert below == []
    finally:
        runtime("rm", "-f", "mounting")
        runtime("rmi", IMAGE)
