"""The file system of a root that is not on btrfs: a file, mounted for as long as it is used."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest

from drivers.api import Kind
from drivers.btrfs import image as btrfs_image
from drivers.btrfs import subvolumes
from drivers.catalog import probe
from drivers.disk import loop
from drivers.errors import DriverError, Unavailable
from drivers.graph.directories import DirectorySnapshotter
from tests import trees
from tests.children import in_child
from tests.drivers.btrfs.looking import GIB, MIB, devices, layer, on, opened, size_of
from tests.mounting import mounted
from unionfs.linux import consts, mounts, processes

pytestmark = pytest.mark.needs("loop", "program:mkfs.btrfs")


def test_the_file_is_mounted_while_it_is_used(root: str) -> None:
    first = opened(root, loopsize="1G")
    second = opened(root)
    assert len(devices(root)) == 1
    status = os.stat(f"{root}/btrfs.img")
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (GIB, 0o600)
    assert status.st_blocks * 512 < 16 * MIB
    first.close()
    second.prepare("unpack")
    second.commit("base", "unpack")
    second.close()
    assert not devices(root)
    third = opened(root)
    assert [(info.name, info.kind) for info in third.walk()] == [("base", Kind.COMMITTED)]
    third.close()
    assert not devices(root)


@pytest.mark.parametrize("method", ["prepare", "view"])
def test_mounts_that_were_given_outlast_the_driver(root: str, method: str) -> None:
    driver = opened(root)
    given = getattr(driver, method)("key")
    driver.close()
    assert len(devices(root)) == 1
    with mounted(given) as path:
        assert os.listdir(path) == []
    driver = opened(root)
    driver.remove("key")
    driver.close()
    assert not devices(root)


def test_after_a_reboot_it_is_mounted_again(root: str) -> None:
    driver = opened(root)
    driver.prepare("key")
    Path(layer(driver, "key"), "f").write_text("x")
    driver.close()
    loop.detach(f"/dev/{devices(root)[0]}")
    assert not devices(root)
    driver = opened(root)
    with mounted(driver.mounts("key")) as path:
        trees.assert_tree(path, {"f": "x"})
    driver.remove("key")
    driver.close()


def test_many_open_it_at_once(root: str) -> None:
    def work(number: int) -> None:
        for turn in range(4):
            driver = opened(root)
            driver.prepare(f"key-{number}-{turn}")
            assert len(devices(root)) == 1
            driver.remove(f"key-{number}-{turn}")
            driver.close()

    children = [in_child(partial(work, number)) for number in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    assert not devices(root)


def test_another_mount_namespace(root: str) -> None:
    """A process there has a mount of its own, of the same file system."""
    driver = opened(root)
    driver.prepare("ours")
    Path(layer(driver, "ours"), "f").write_text("from here")

    def elsewhere() -> None:
        processes.unshare(consts.CLONE_NEWNS)
        mounts.mount("none", "/", None, consts.MS_REC | consts.MS_PRIVATE)
        mine = opened(root)
        assert len(devices(root)) == 1
        trees.assert_tree(layer(mine, "ours"), {"f": "from here"})
        mine.prepare("theirs")
        Path(layer(mine, "theirs"), "g").write_text("from there")
        mine.commit("base", "theirs")
        mine.remove("ours")
        mine.close()

    assert in_child(elsewhere).wait() == 0
    trees.assert_tree(layer(driver, "base"), {"g": "from there"})
    driver.close()
    assert not devices(root)


def test_nobody_sees_it_mounted_or_keeps_it(root: str) -> None:
    """A mount namespace that is made meanwhile has no copy of it, and so does not keep the device for its own life."""
    driver = opened(root)
    [device] = devices(root)
    assert not [point for point in mounts.mountinfo() if point.source == f"/dev/{device}"]
    command = ["unshare", "-m", "sh", "-c", "echo; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as elsewhere:
        assert elsewhere.stdout is not None
        elsewhere.stdout.readline()
        driver.close()
        assert not devices(root)
        elsewhere.communicate(b"\n")


def test_its_mount_gives_no_rights_and_takes_none_from_containers(root: str) -> None:
    driver = opened(root)
    hardened = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    with mounted(driver.prepare("key")) as path:
        assert os.fstatvfs(driver._layout.fd).f_flag & hardened == hardened
        assert not os.statvfs(path).f_flag & hardened
    driver.remove("key")
    driver.close()


def test_who_is_killed_leaves_no_device(root: str) -> None:
    def work() -> None:
        opened(root).prepare("key")
        assert devices(root)
        os.kill(os.getpid(), signal.SIGKILL)

    opened(root).close()
    assert in_child(work).wait() == -signal.SIGKILL
    assert not devices(root)
    driver = opened(root)
    driver.remove("key")
    driver.close()
    assert not devices(root)


@pytest.mark.parametrize("kind", ["active", "view"])
def test_who_is_killed_before_the_device_is_let_go_of(root: str, kind: str) -> None:
    """It was to stay for the snapshot, which has gone: the next to close lets it go."""
    driver = opened(root)
    driver.prepare("key") if kind == "active" else driver.view("key")
    driver.close()
    assert devices(root)

    def work() -> None:
        opened(root).remove("key")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work).wait() == -signal.SIGKILL
    assert devices(root)
    driver = opened(root)
    driver.cleanup()
    driver.close()
    assert not devices(root)


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize("other", ["a new btrfs", "another root's", "a symbolic link", "a directory", "somebody's"])
def test_a_file_that_is_not_the_one_of_last_time(root: str, other: str) -> None:
    """It is not mounted, for that would write to it."""
    opened(root, loopsize="256M").close()
    image, aside = f"{root}/btrfs.img", f"{root}/aside"
    os.rename(image, aside)
    if other == "a new btrfs":
        with open(image, "wb") as file:
            file.truncate(256 * MIB)
        os.chmod(image, 0o600)
        subprocess.run(["mkfs.btrfs", "--quiet", "--nodiscard", image], check=True, capture_output=True)
    elif other == "another root's":
        opened(f"{root}-2", loopsize="256M").close()
        os.rename(f"{root}-2/btrfs.img", image)
    elif other == "a symbolic link":
        os.symlink(aside, image)
    elif other == "a directory":
        os.mkdir(image)
    else:
        os.link(aside, image)
        os.chown(image, 12345, -1)
    before = None if other == "a directory" else digest(image)
    with pytest.raises(Unavailable, match=r"put back the (file|one) that belongs here|belongs to the user 12345") as no:
        opened(root)
    assert "\n" not in str(no.value)
    assert not devices(root)
    assert before is None or digest(image) == before
    os.rmdir(image) if other == "a directory" else os.unlink(image)
    os.chown(aside, 0, -1)
    os.rename(aside, image)
    os.chmod(image, 0o644)
    opened(root).close()
    assert stat.S_IMODE(os.stat(image).st_mode) == 0o600


def test_a_store_that_is_lost_beside_the_file(root: str) -> None:
    opened(root).close()
    for name in os.listdir(root):
        if name.startswith("metadata.db") and os.path.isfile(f"{root}/{name}"):
            os.unlink(f"{root}/{name}")
    with pytest.raises(Unavailable, match=r"metadata.db is missing or empty, but there are layers beside it"):
        opened(root)
    assert not devices(root)


def test_a_foreign_btrfs_mounted_at_the_snapshots(disk: Path, tmp_path: Path) -> None:
    root = str(disk / "root")
    driver = opened(root)
    driver.prepare("key")
    driver.close()
    image = tmp_path / "foreign"
    with open(image, "wb") as file:
        file.truncate(256 * MIB)
    subprocess.run(["mkfs.btrfs", "--quiet", "--nodiscard", image], check=True, capture_output=True)
    with loop.attached(str(image)) as device:
        mounts.mount(device, f"{root}/snapshots", "btrfs")
    os.mkdir(f"{root}/snapshots/7")
    with pytest.raises(Unavailable, match="snapshots are not those of this root"):
        opened(root)
    assert os.listdir(f"{root}/snapshots") == ["7"]
    mounts.umount2(f"{root}/snapshots")
    driver = opened(root)
    driver.remove("key")
    driver.close()


@pytest.mark.parametrize("how", ["remove", "cleanup"])
def test_what_is_removed_takes_no_room_outside(root: str, how: str) -> None:
    """At once: the last command unmounts it, and then the kernel discards nothing any more."""
    driver = opened(root)
    for name in ("stays", "goes"):
        with mounted(driver.prepare(name)) as path:
            for number in range(40):
                Path(path, f"f{number}").write_bytes(os.urandom(MIB))
    fd = on(layer(driver, "goes"))
    subvolumes.sync(fd)
    os.close(fd)
    assert _taken(root) > 80 * MIB
    if how == "remove":
        driver.remove("goes")
    else:  # after somebody who was killed when the row had gone
        with driver._store.write() as transaction:
            transaction.remove("goes")
        driver.cleanup()
    driver.close()
    assert 40 * MIB < _taken(root) < 60 * MIB
    driver = opened(root)
    driver.remove("stays")
    driver.close()
    assert _taken(root) < 16 * MIB


def _with_something_removed(root: str) -> DirectorySnapshotter:
    driver = opened(root)
    with mounted(driver.prepare("goes")) as path:
        Path(path, "f").write_bytes(os.urandom(40 * MIB))
        os.sync()
    driver.remove("goes")
    return driver


def test_who_is_interrupted_while_giving_it_back_lets_go_of_all(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = _with_something_removed(root)
    exists = subvolumes.exists

    def interrupted(fd: int, number: int) -> bool:
        signal.raise_signal(signal.SIGINT)
        return exists(fd, number)

    monkeypatch.setattr(subvolumes, "exists", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            driver.close()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not devices(root)
    with pytest.raises(DriverError), driver._store.read():
        pass


@pytest.mark.parametrize("slow", [1, 2])
def test_what_takes_too_long_to_give_back_is_left(root: str, slow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever step it is that took the time, nothing follows it."""
    driver = _with_something_removed(root)
    done = []
    sync, trim, exists = subvolumes.sync, subvolumes.trim, subvolumes.exists

    def synced(fd: int) -> None:
        sync(fd)
        done.append("sync")
        if len(done) == slow:
            while any(exists(fd, number) for number in driver._destroyed):  # type: ignore[attr-defined]
                pass  # so that there is nothing left to wait for
            monkeypatch.setattr("drivers.btrfs.image.time.monotonic", lambda: 1e300)

    def trimmed(fd: int, least: int) -> None:
        done.append("trim")
        trim(fd, least)

    monkeypatch.setattr(subvolumes, "sync", synced)
    monkeypatch.setattr(subvolumes, "trim", trimmed)
    try:
        driver._image.give_back(driver._destroyed)  # type: ignore[attr-defined]
    finally:
        monkeypatch.undo()
        driver.close()
    assert done == ["sync"] * slow


def _taken(root: str) -> int:
    return os.stat(f"{root}/btrfs.img").st_blocks * 512


def test_it_grows_while_it_is_in_use(root: str) -> None:
    first = opened(root, loopsize="300M")
    before = size_of(root)
    second = opened(root, loopsize="600M")
    assert (before, size_of(root)) == (300 * MIB, 600 * MIB)
    first.close()
    second.close()
    third = opened(root)
    assert os.stat(f"{root}/btrfs.img").st_size == 600 * MIB
    third.close()
    with pytest.raises(Unavailable, match=r"btrfs.loopsize=500M is less than the 600M .* cannot be made smaller"):
        opened(root, loopsize="500M")
    assert not devices(root)


def test_growing_is_taken_up_where_it_stopped(root: str) -> None:
    opened(root, loopsize="300M").close()
    os.truncate(f"{root}/btrfs.img", 400 * MIB)
    driver = opened(root)
    assert size_of(root) == 400 * MIB
    driver.close()


def test_the_default_size_is_what_the_disk_has(memory: Path) -> None:
    root = str(memory / "btrfs")
    opened(root).close()
    assert os.stat(f"{root}/btrfs.img").st_size == 256 * MIB  # the least: there are 64 MiB


@pytest.mark.parametrize(("size", "sentence"), [
    ("10M", "btrfs.loopsize=10M is too small: at least 256M"),
    ("many", "btrfs.loopsize=many is not a size"),
])
def test_a_size_that_cannot_be(root: str, size: str, sentence: str) -> None:
    with pytest.raises(Unavailable, match=sentence):
        opened(root, loopsize=size)
    assert not os.path.exists(f"{root}/btrfs.img") and not os.path.exists(f"{root}/btrfs.img.new")
    driver = opened(root)
    assert driver._store.options == {}
    driver.close()


def test_a_size_that_is_less_is_not_kept(root: str) -> None:
    opened(root, loopsize="300M").close()
    with pytest.raises(Unavailable, match=r"btrfs.loopsize=256M is less than the 300M that .*btrfs.img has"):
        opened(root, loopsize="256M")
    driver = opened(root)
    assert driver._store.options == {"btrfs.loopsize": "300M"}
    assert "btrfs.img has 300M (--storage-opt btrfs.loopsize=" in driver.how_to_make_room()
    os.rename(f"{root}/btrfs.img", f"{root}/away")  # it is asked for in an error's place, and is none itself
    assert "btrfs.img is full (--storage-opt btrfs.loopsize=" in driver.how_to_make_room()
    os.rename(f"{root}/away", f"{root}/btrfs.img")
    driver.close()


def test_a_size_for_a_root_on_btrfs(disk: Path) -> None:
    with pytest.raises(Unavailable, match="is for a root that is not on btrfs"):
        opened(str(disk / "root"), loopsize="1G")


def test_no_mkfs(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btrfs_image, "mkfs", lambda: None)
    sentence = "mkfs.btrfs is not installed: apt install btrfs-progs"
    found = probe("btrfs", root)
    assert (found.works, found.reason) == (False, sentence)
    with pytest.raises(Unavailable, match=sentence):
        opened(root)


def test_a_failing_mkfs_leaves_nothing(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mkfs.btrfs"
    program.write_text("#!/bin/sh\necho 'ERROR: not today' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(btrfs_image, "mkfs", lambda: str(program))
    with pytest.raises(Unavailable, match=r"mkfs.btrfs cannot make .*btrfs.img.new: ERROR: not today"):
        opened(root)
    assert [name for name in os.listdir(root) if not name.startswith("metadata.db")] == ["btrfs.lock"]


def test_a_lost_file(root: str) -> None:
    opened(root).close()
    os.unlink(f"{root}/btrfs.img")
    with pytest.raises(Unavailable, match=r"btrfs.img is missing, and all layers"):
        opened(root)


def test_a_damaged_file(root: str) -> None:
    opened(root).close()
    with open(f"{root}/btrfs.img", "r+b") as image:
        image.seek(64 << 10)
        image.write(bytes(4096))
    with pytest.raises(Unavailable, match=r"is damaged: there is no btrfs in it"):
        opened(root)
    assert not devices(root)


def test_a_full_disk_and_then_room(root: str) -> None:
    """The file promises more than the disk below it has: that ends in a sentence, and nothing that was committed is
    lost. With room made, and once nothing has it mounted, it goes on."""
    memory = os.path.dirname(root)
    mounts.mount("tmpfs", memory, "tmpfs", consts.MS_REMOUNT, "size=64m")
    driver = opened(root)
    driver.prepare("unpack")
    trees.build(layer(driver, "unpack"), {"f": "kept"})
    driver.commit("base", "unpack")
    with mounted(driver.prepare("key", "base")) as path:
        with pytest.raises(OSError, match=r"Input/output error|Read-only file system"):
            for number in range(80):
                Path(path, f"f{number}").write_bytes(os.urandom(MIB))
            os.sync()
            subvolumes.sync(driver._layout.fd)
        with pytest.raises(Unavailable, match="has turned read-only after an error, most likely because the disk is"):
            opened(root)
    driver.close()
    mounts.mount("tmpfs", memory, "tmpfs", consts.MS_REMOUNT, "size=400m")
    driver = opened(root)
    trees.assert_tree(layer(driver, "base"), {"f": "kept"})
    driver.remove("key")
    driver.prepare("again", "base")
    driver.commit("name", "again")
    driver.cleanup()
    driver.check_invariants()
    driver.close()
    assert not devices(root)
