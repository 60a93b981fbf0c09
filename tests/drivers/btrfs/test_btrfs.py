"""Subvolumes as a driver, in a file of its own and on a root that is on btrfs."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from drivers.api import Kind, Mount, Snapshotter
from drivers.btrfs import driver as btrfs_driver
from drivers.btrfs import image as btrfs_image
from drivers.btrfs import qgroups, subvolumes
from drivers.catalog import open_driver, probe
from drivers.disk import loop
from drivers.disk.trees import DIRECTORY
from drivers.errors import DriverError, Unavailable
from drivers.graph.directories import DirectorySnapshotter
from tests import trees
from tests.contracts.snapshotter import SnapshotterContract
from tests.drivers.children import in_child
from tests.drivers.crashing import CrashContract
from tests.mounting import mounted
from tests.trees import Dir, File
from unionfs.linux import consts, mounts, processes
from unionfs.linux.files import renameat2

pytestmark = pytest.mark.needs("loop", "program:mkfs.btrfs")

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A btrfs that is somebody else's."""
    image = tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(2 * GIB)
    subprocess.run(["mkfs.btrfs", "--quiet", "--nodiscard", image], check=True, capture_output=True)
    with loop.attached(str(image)) as device, mounted([Mount("btrfs", device)]) as path:
        yield Path(path)


class TestBtrfsInAFile(SnapshotterContract):
    driver_name = "btrfs"
    driver_options = {"btrfs.loopsize": "2G"}
    quota = 50 * MIB


class TestBtrfsRoot(SnapshotterContract):
    driver_name = "btrfs"
    quota = 50 * MIB

    @pytest.fixture
    def place(self, disk: Path) -> Path:
        return disk


@pytest.fixture
def root() -> Iterator[str]:
    """A root that needs a file, not made yet; what a test leaves mounted there is unmounted."""
    with mounted([Mount("tmpfs", "tmpfs", ("size=400m",))]) as memory:
        root = f"{memory}/btrfs"
        yield root
        for device in devices(root):
            loop.detach(f"/dev/{device}")


@pytest.fixture(params=["file", "disk"])
def either(request: pytest.FixtureRequest) -> str:
    fixture = request.getfixturevalue("root" if request.param == "file" else "disk")
    return fixture if request.param == "file" else str(fixture / "btrfs")


def opened(root: str, **options: str) -> DirectorySnapshotter:
    driver = open_driver("btrfs", root, {f"btrfs.{name}": value for name, value in options.items()})
    assert isinstance(driver, DirectorySnapshotter)
    return driver


def layer(driver: Snapshotter, name: str) -> str:
    assert isinstance(driver, DirectorySnapshotter)
    with driver._store.read() as transaction:
        return driver._layer(transaction.get(name))


def on(path: str) -> int:
    return os.open(path, DIRECTORY)


def on_snapshots(root: str) -> int:
    """A descriptor of where the root's snapshots are."""
    if not os.path.exists(f"{root}/btrfs.img"):
        return on(f"{root}/snapshots")
    with loop.attached(f"{root}/btrfs.img") as device:
        context = mounts.fsopen("btrfs")
        mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, "source", device)
        mounts.fsconfig(context, consts.FSCONFIG_CMD_CREATE)
        tree = mounts.fsmount(context)
        fd = os.open(".", DIRECTORY, dir_fd=tree)
        os.close(context)
        os.close(tree)
    return fd


def size_of(root: str) -> int:
    fd = on_snapshots(root)
    status = os.fstatvfs(fd)
    os.close(fd)
    return status.f_blocks * status.f_frsize


def make_subvolume(path: str) -> None:
    fd = on(os.path.dirname(path))
    try:
        subvolumes.create(fd, os.path.basename(path))
    finally:
        os.close(fd)


def all_subvolumes(root: str) -> set[int]:
    """Of the whole file system, those whose blocks are still being given back not among them."""
    fd = on_snapshots(root)
    try:
        found, pending = set(), [subvolumes.FS_TREE]
        while pending:
            below = [reference.number for reference in subvolumes.children(fd, pending.pop())]
            found.update(below)
            pending += below
        return found
    finally:
        os.close(fd)


def devices(root: str) -> list[str]:
    """The loop devices of the root's image."""
    found = []
    for name in os.listdir("/sys/block"):
        backing = Path(f"/sys/block/{name}/loop/backing_file")
        try:
            if backing.read_text().strip() == os.path.realpath(f"{root}/btrfs.img"):
                found.append(name)
        except OSError:
            continue
    return found


# Subvolumes in a layer.

NESTED: trees.Tree = {
    "d": Dir({"inner": Dir({"f": "in", "deeper": {"g": "deep"}}, mode=0o750, uid=5), "h": "h"}),
    "top": {"k": File("k" * 70_000, mode=0o600)},
}


def build_nested(path: str) -> None:
    """NESTED, of which three directories are subvolumes."""
    os.mkdir(f"{path}/d")
    make_subvolume(f"{path}/d/inner")
    make_subvolume(f"{path}/d/inner/deeper")
    make_subvolume(f"{path}/top")
    Path(path, "d/inner/f").write_text("in")
    Path(path, "d/inner/deeper/g").write_text("deep")
    Path(path, "d/h").write_text("h")
    Path(path, "top/k").write_text("k" * 70_000)
    os.chmod(f"{path}/top/k", 0o600)
    os.chmod(f"{path}/d/inner", 0o750)
    os.chown(f"{path}/d/inner", 5, -1)
    for name in ("top", "d/inner/deeper"):
        os.chmod(f"{path}/{name}", 0o755)
    os.utime(f"{path}/d", ns=(10**18, 10**18))


def test_subvolumes_in_a_layer_are_removed_with_it(either: str) -> None:
    driver = opened(either)
    with mounted(driver.prepare("key")) as path:
        build_nested(path)
        fd = on(f"{path}/d/inner")
        subvolumes.snapshot(fd, fd, "copy")
        subvolumes.set_read_only(fd, True)  # what is below it could not be destroyed, as it is
        os.close(fd)
    before = all_subvolumes(either)
    assert len(before) == 5
    driver.remove("key")
    assert not all_subvolumes(either)
    driver.check_invariants()
    driver.close()


def test_subvolumes_nested_deeper_than_a_path_or_the_stack(root: str) -> None:
    driver = opened(root)
    depth, name = 400, "n" * 20
    with mounted(driver.prepare("key")) as path:
        fd = on(path)
        for _ in range(depth):
            subvolumes.create(fd, name)
            below = os.open(name, DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
    assert len(all_subvolumes(root)) == depth + 1
    driver.remove("key")
    assert not all_subvolumes(root)
    driver.close()


def test_what_a_killed_commit_put_aside_goes_with_the_next(either: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = opened(either)
    with mounted(driver.prepare("key")) as path:
        build_nested(path)

    def die_after_the_exchange() -> None:
        def exchange(*how: Any) -> None:
            renameat2(*how)
            os._exit(9)

        monkeypatch.setattr(btrfs_driver, "renameat2", exchange)
        opened(either).commit("base", "key")

    assert in_child(die_after_the_exchange).wait() == 9
    driver.commit("base", "key")
    assert len(all_subvolumes(either)) == 1
    driver.remove("base")
    driver.close()


def test_a_committed_layer_has_plain_directories(either: str) -> None:
    """A snapshot of a subvolume has empty directories for those in it: children would not see what was in them."""
    driver = opened(either)
    with mounted(driver.prepare("key", quota=10 * MIB)) as path:
        build_nested(path)
    driver.commit("base", "key")
    assert len(all_subvolumes(either)) == 1
    with mounted(driver.view("view", "base")) as path:
        trees.assert_tree(path, NESTED)
        assert os.stat(f"{path}/d").st_mtime_ns == 10**18
    with mounted(driver.prepare("child", "base")) as path:
        assert driver.usage("child") == (1, 0)
        trees.assert_tree(path, NESTED)
    driver.remove("view")
    driver.remove("child")
    driver.check_invariants()
    driver.close()


def test_a_committed_layer_cannot_be_written_to(either: str) -> None:
    driver = opened(either)
    driver.prepare("key")
    Path(layer(driver, "key"), "f").write_text("x")
    driver.commit("base", "key")
    with pytest.raises(OSError, match="Read-only"):
        Path(layer(driver, "base"), "f").write_text("y")
    driver.close()


def test_usage_is_what_was_changed(either: str) -> None:
    driver = opened(either)
    driver.prepare("key")
    trees.build(layer(driver, "key"), {f"f{n}": File(os.urandom(8192)) for n in range(100)})
    driver.commit("base", "key")
    assert driver.usage("base") == (101, 100 * 8192)
    driver.prepare("child", "base")
    path = layer(driver, "child")
    assert driver.usage("child") == (1, 0)
    os.chmod(f"{path}/f1", 0o600)
    assert driver.usage("child") == (2, 0)
    os.unlink(f"{path}/f2")
    with open(f"{path}/f3", "r+b") as file:
        file.write(os.urandom(4096))
    Path(path, "inline").write_bytes(b"x" * 100)
    make_subvolume(f"{path}/sub")
    Path(path, "sub/g").write_bytes(os.urandom(1 << 16))
    assert driver.usage("child") == (6, 4096 + 100 + (1 << 16))  # the root, f1, f3, inline; sub, g
    driver.remove("child")
    driver.close()


@pytest.mark.parametrize("depth", ["own", "parent"])
def test_a_subvolume_that_was_replaced_by_a_plain_directory(either: str, depth: str) -> None:
    """As a copy of the root with cp has them."""
    driver = opened(either)
    driver.prepare("key")
    driver.commit("base", "key")
    driver.prepare("active", "base")
    path = layer(driver, "active" if depth == "own" else "base")
    os.rename(path, f"{path}.aside")
    os.mkdir(path)
    damaged = r"a layer is damaged: .*/btrfs/snapshots/[12]/fs is not what it was"
    with pytest.raises(Unavailable, match=damaged):
        driver.mounts("active")
    if depth == "parent":
        with pytest.raises(Unavailable, match=damaged):
            driver.prepare("new", "base")
    os.rmdir(path)
    os.rename(f"{path}.aside", path)
    driver.remove("active")
    driver.check_invariants()
    driver.close()


# Killed at any step.


class TestKilled(CrashContract):
    driver_name = "btrfs"
    each_way = False
    stride = 5  # each is two mounts, and often a mkfs

    def test_killed_in_commit_with_subvolumes(self, based: str) -> None:
        def make(driver: Snapshotter) -> None:
            driver.prepare("key")
            with mounted(driver.mounts("key")) as path:
                build_nested(path)

        with closing(opened(based)) as whole:
            make(whole)
        last: dict[str, Kind] = {}
        for driver in self.found(based, lambda driver: driver.commit("name", "key")):
            last = self.kinds(driver)
            assert last in ({"key": Kind.ACTIVE}, {"name": Kind.COMMITTED})
            trees.assert_tree(layer(driver, *last), NESTED)
            if last == {"key": Kind.ACTIVE} and len(all_subvolumes(based)) == 2:
                # It is plain already: make it what it was, so that every step is reached.
                driver.remove("key")
                make(driver)
        assert last == {"name": Kind.COMMITTED}

    def test_killed_in_prepare_with_a_quota(self, based: str) -> None:
        last: dict[str, Kind] = {}
        for driver in self.found(based, lambda driver: driver.prepare("key", "base", quota=10 * MIB)):
            last = self.kinds(driver)
            if last:
                driver.remove("key")
        assert last
        with closing(opened(based)):
            assert set(groups_of(based)) == {subvolumes.FS_TREE, *all_subvolumes(based)}

    def test_killed_in_remove_with_subvolumes(self, based: str) -> None:
        def make(driver: Snapshotter) -> None:
            with mounted(driver.prepare("key", "base", quota=10 * MIB)) as path:
                build_nested(path)

        with closing(opened(based)) as whole:
            make(whole)
        last: dict[str, Kind] = {}
        for driver in self.found(based, lambda driver: driver.remove("key")):
            last = self.kinds(driver)
            assert len(all_subvolumes(based)) == (5 if last else 1)
            if not last:
                make(driver)
        assert last == {}

    def test_killed_in_the_first_open(self, root: str) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(TestKilled, "stride", 12)  # a file system is made at each
            super().test_killed_in_the_first_open(root)

    def orphans(self, root: str) -> list[str]:
        files = set(os.listdir(root)) - {"btrfs.img", "btrfs.lock", "snapshots"}
        files = {name for name in files if not name.startswith((".probe-", "metadata.db"))}
        return [*super().orphans(root), *map(str, files)]


# Quotas.


def groups_of(root: str) -> list[int]:
    """The quota groups, once the kernel has given back what was destroyed."""
    fd = on_snapshots(root)
    try:
        while True:
            found = qgroups.groups(fd)
            if all(group >> 48 or group in (subvolumes.FS_TREE, *all_subvolumes(root)) for group in found):
                return found
            subvolumes.sync(fd)  # wakes the cleaner
    finally:
        os.close(fd)


def fill(path: str, size: int) -> int:
    """Write up to `size` bytes to the file, and give how many were taken."""
    written = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while written < size:
            written += os.write(fd, os.urandom(min(MIB, size - written)))
        os.fsync(fd)
    except OSError as error:
        assert error.errno == errno.EDQUOT
    finally:
        os.close(fd)
    return written


def test_a_quota_counts_what_is_written(either: str) -> None:
    """And not what the parent has; what is deleted can be written again."""
    driver = opened(either)
    driver.prepare("key")
    fill(f"{layer(driver, 'key')}/big", 30 * MIB)
    driver.commit("base", "key")
    with mounted(driver.prepare("one", "base", quota=20 * MIB)) as path:
        assert driver.stat("one").quota == 20 * MIB
        assert 18 * MIB <= fill(f"{path}/f", 40 * MIB) <= 20 * MIB
        os.unlink(f"{path}/f")
        os.sync()
        assert fill(f"{path}/g", 10 * MIB) == 10 * MIB
        with open(f"{path}/big", "rb") as big:
            assert len(big.read()) == 30 * MIB
    with mounted(driver.prepare("two", "base")) as path:
        assert fill(f"{path}/f", 40 * MIB) == 40 * MIB
    driver.remove("one")
    driver.remove("two")
    assert set(groups_of(either)) == {subvolumes.FS_TREE, *all_subvolumes(either)}
    driver.check_invariants()
    driver.close()


def test_subvolumes_are_no_way_around_a_quota(root: str) -> None:
    driver = opened(root)
    with mounted(driver.prepare("key", quota=20 * MIB)) as path:
        for name in ("a", "b"):
            make_subvolume(f"{path}/{name}")
        assert fill(f"{path}/a/f", 12 * MIB) == 12 * MIB
        assert fill(f"{path}/b/f", 12 * MIB) < 9 * MIB
    driver.remove("key")
    assert groups_of(root) == [subvolumes.FS_TREE]
    driver.close()


def test_quotas_are_off_until_one_is_asked_for(either: str) -> None:
    driver = opened(either)
    driver.prepare("key")
    assert groups_of(either) == []
    driver.remove("key")
    driver.close()


@pytest.mark.parametrize("kind", [qgroups.BTRFS_QUOTA_CTL_ENABLE, qgroups.BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA])
def test_what_others_have_limited_stays(disk: Path, kind: int) -> None:
    import fcntl

    fd = on(str(disk))
    try:
        try:
            fcntl.ioctl(fd, qgroups.BTRFS_IOC_QUOTA_CTL, bytearray(qgroups._CTL.pack(kind, 0)))
        except OSError as error:
            pytest.skip(f"this kernel has no such quotas: {error.strerror}")
        subvolumes.create(fd, "theirs")
        theirs = on(str(disk / "theirs"))
        number = subvolumes.number(theirs)
        os.close(theirs)
        own = 7 << 48 | 1
        fcntl.ioctl(fd, qgroups.BTRFS_IOC_QGROUP_CREATE, qgroups._CREATE.pack(1, own))
        fcntl.ioctl(fd, qgroups.BTRFS_IOC_QGROUP_LIMIT, qgroups._LIMIT.pack(number, 2, 0, 5 * MIB, 0, 0))
        driver = opened(str(disk / "root"))
        with mounted(driver.prepare("key", quota=10 * MIB)) as path:
            assert 8 * MIB <= fill(f"{path}/f", 40 * MIB) <= 10 * MIB
        assert fill(str(disk / "theirs" / "f"), 40 * MIB) <= 5 * MIB
        driver.remove("key")
        driver.cleanup()
        assert set(groups_of(str(disk / "root"))) == {subvolumes.FS_TREE, number, own}
        driver.close()
    finally:
        os.close(fd)


# The file.


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
    ("many", "btrfs.loopsize=many is no size"),
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
