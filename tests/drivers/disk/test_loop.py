"""Files as block devices."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from drivers.disk import loop
from drivers.disk.loop import attach, attached, detach, find, set_autoclear, set_capacity
from tests.children import in_child
from unionfs.linux import consts, mounts

pytestmark = pytest.mark.needs("loop")

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "image"
    with open(path, "wb") as file:
        file.truncate(4 * MIB)
    yield str(path)
    while device := find(str(path)):
        detach(device)


def size(device: str) -> int:
    fd = os.open(device, os.O_RDONLY)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def flags(device: str, name: str) -> bool:
    return Path(f"/sys/block/{os.path.basename(device)}/loop/{name}").read_text() == "1\n"


def test_what_is_written_to_the_device_is_in_the_file(image: str) -> None:
    device = attach(image)
    assert device.startswith("/dev/loop") and find(image) == device
    assert size(device) == 4 * MIB
    assert not flags(device, "autoclear")
    with open(device, "r+b") as block:
        block.seek(MIB)
        block.write(b"written")
        block.flush()
        os.fsync(block.fileno())
    with open(image, "rb") as file:
        file.seek(MIB)
        assert file.read(7) == b"written"
    detach(device)
    assert find(image) is None


def test_a_read_only_device(image: str) -> None:
    os.chmod(image, 0o400)
    device = attach(image, read_only=True)
    with pytest.raises(OSError, match=r"not permitted|Read-only"), open(device, "r+b") as block:
        block.write(bytes(512))
        block.flush()
        os.fsync(block.fileno())
    detach(device)


def test_direct_io_is_asked_for(image: str) -> None:
    device, cached = attach(image), attach(image, direct_io=False)
    try:
        os.close(os.open(image, os.O_RDONLY | os.O_DIRECT))
        can_do_it = True
    except OSError:
        can_do_it = False
    assert (flags(device, "dio"), flags(cached, "dio")) == (can_do_it, False)
    detach(device)
    detach(cached)


def test_a_file_is_found_by_any_name(image: str, tmp_path: Path) -> None:
    device = attach(image)
    os.link(image, tmp_path / "hard")
    os.symlink(image, tmp_path / "soft")
    assert find(str(tmp_path / "hard")) == find(str(tmp_path / "soft")) == device
    os.rename(image, tmp_path / "moved")
    Path(image).write_bytes(bytes(MIB))
    assert find(image) is None
    assert find(str(tmp_path / "moved")) == device
    detach(device)


def test_a_device_grows_with_its_file(image: str) -> None:
    device = attach(image)
    os.truncate(image, 6 * MIB)
    assert size(device) == 4 * MIB
    set_capacity(device)
    assert size(device) == 6 * MIB
    detach(device)


def test_many_processes_attach_at_once(tmp_path: Path) -> None:
    """Those who are offered the same free device ask again."""
    images = [str(tmp_path / f"image{n}") for n in range(12)]
    for path in images:
        Path(path).write_bytes(bytes(MIB))
    assert [child.wait() for child in [in_child(partial(attach, path)) for path in images]] == [0] * 12
    devices = [find(path) for path in images]
    assert len(set(devices)) == 12 and None not in devices
    for device in devices:
        assert device
        detach(device)


def test_detaching_twice_and_what_is_not_there(image: str) -> None:
    device = attach(image)
    detach(device)
    detach(device)
    detach("/dev/loop1048575")


def test_a_device_of_another_file_is_left_alone(image: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(MIB))
    device = attach(image)
    detach(device, str(other))
    assert find(image) == device
    detach(device, image)
    assert find(image) is None


def test_a_missing_file(tmp_path: Path) -> None:
    for call in (attach, find):
        with pytest.raises(FileNotFoundError):
            call(str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError), attached(str(tmp_path / "missing")):
        pass


def test_attached_is_one_device_and_ends_by_itself(image: str) -> None:
    with attached(image) as device, attached(image) as same:
        assert device == same == find(image)
        assert flags(device, "autoclear")
    assert find(image) is None


def test_attached_outlasts_the_with_while_it_is_mounted(image: str, tmp_path: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    target = tmp_path / "target"
    target.mkdir()
    with attached(image) as device:
        mounts.mount(device, str(target), "ext4")
    try:
        assert find(image) == device
        (target / "f").write_text("x")
    finally:
        mounts.umount2(str(target), consts.UMOUNT_NOFOLLOW)
    assert find(image) is None


def test_whether_a_device_goes_by_itself_can_be_changed(image: str) -> None:
    with attached(image) as device:
        set_autoclear(device, False)
    assert find(image) == device and not flags(device, "autoclear")
    with attached(image) as same:
        assert same == device
        set_autoclear(device, True)
    assert find(image) is None


def test_who_is_killed_leaves_no_device(image: str) -> None:
    def die() -> None:
        with attached(image):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die).wait() == -signal.SIGKILL
    assert find(image) is None


def test_a_chroot_in_which_devices_do_not_appear(image: str, tmp_path: Path) -> None:
    """/dev is a tmpfs without a node: both the control device and the loop device are made."""
    script = (
        "import sys\n"
        "from unionfs.linux import consts, mounts, processes\n"
        "processes.unshare(consts.CLONE_NEWNS)\n"
        "mounts.mount('none', '/', None, consts.MS_REC | consts.MS_PRIVATE)\n"
        "mounts.mount('tmpfs', '/dev', 'tmpfs')\n"
        "from drivers.disk import loop\n"
        "device = loop.attach(sys.argv[1])\n"
        "assert loop.find(sys.argv[1]) == device\n"
        "loop.detach(device)\n"
        "assert loop.find(sys.argv[1]) is None\n"
    )
    subprocess.run([sys.executable, "-c", script, image], check=True, cwd=os.getcwd())


def test_a_device_that_is_taken_for_ever(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others take each device that we are offered: that ends, and says so."""
    device = attach(image)
    monkeypatch.setattr(loop, "_free", lambda: device)
    with pytest.raises(OSError, match="taken by others") as busy:
        attach(image)
    assert busy.value.errno == errno.EBUSY
    detach(device)
