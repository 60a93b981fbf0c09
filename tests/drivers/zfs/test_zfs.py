"""Datasets as a driver: in a kernel that has zfs (`python -m tests.vm --zfs`)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import linecache
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from drivers.api import Kind, Mount
from drivers.catalog import open_driver, probe
from drivers.errors import InUse, NotFound, Unavailable
from drivers.mounts.attached import mount_all
from drivers.zfs import driver as zfs_driver
from drivers.zfs.command import missing, zfs
from drivers.zfs.driver import Driver
from tests import trees
from tests.children import in_child
from tests.contracts.snapshotter import SnapshotterContract
from tests.contracts.snapshotter.words import FULL
from tests.drivers.zfs.pools import OPTIONS, POOL, pool  # noqa: F401  (a fixture that is used by being there)
from tests.mounting import mounted
from unionfs.linux import consts, libc, mounts

MIB = 1 << 20
TREE: trees.Tree = {"f": "content", "dir": {"g": trees.File("x" * 5000, mode=0o600)}, "link": trees.Symlink(target="f")}

needs_zfs = pytest.mark.needs("zfs")


@needs_zfs
class TestZfs(SnapshotterContract):
    """Each layer is a few commands, and each of those half a second in the guest."""

    driver_name = "zfs"
    driver_options = OPTIONS
    changed_options = {"zfs.fsname": f"{POOL}/other"}
    depth = 101 if FULL else 12
    crowd = 42 if FULL else 8
    compared_layers = 4
    racers = 3
    turns = 4
    counts_files = False
    quota = 20 * MIB


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """With one committed snapshot, "base"."""
    driver = reopen(str(tmp_path / "driver"))
    try:
        with mounted(driver.prepare("unpack")) as path:
            trees.build(path, TREE)
        driver.commit("base", "unpack")
        yield driver
        driver.cleanup()
        driver.check_invariants()
        for info in reversed(list(driver.walk())):
            driver.remove(info.name)
        zfs("destroy", "-r", driver._top)
    finally:
        driver.close()


def reopen(root: str) -> Driver:
    driver = open_driver("zfs", root, OPTIONS)
    assert isinstance(driver, Driver)
    return driver


def datasets(top: str) -> list[str]:
    return zfs("list", "-Hr", "-oname", "-tfilesystem,snapshot", top).split()


def source(mounts: list[Mount]) -> str:
    [mount] = mounts
    assert mount.type == "zfs"
    return mount.source


@needs_zfs
def test_snapshots_by_others_are_in_nobodys_way(driver: Driver) -> None:
    """What zfs-auto-snapshot, sanoid or an administrator do to the whole pool (moby#41055)."""
    mounts = driver.prepare("key", "base")
    zfs("snapshot", "-r", f"{POOL}@hourly")
    with mounted(mounts) as path:
        Path(path, "new").write_text("new")
    zfs("snapshot", "-r", f"{POOL}@daily")
    driver.commit("name", "key")
    driver.cleanup()
    with mounted(driver.view("look", "name")) as path:
        assert Path(path, "new").read_text() == "new"
    for name in ("look", "name", "base"):
        driver.remove(name)
    driver.check_invariants()
    assert datasets(driver._top) == [driver._top, f"{driver._top}@hourly", f"{driver._top}@daily"]
    for name in ("hourly", "daily"):
        zfs("destroy", "-r", f"{POOL}@{name}")


@needs_zfs
@pytest.mark.parametrize("how", ["held", "cloned"])
def test_what_others_need_goes_when_they_are_done(driver: Driver, how: str) -> None:
    dataset = source(driver.prepare("key", "base"))
    zfs("snapshot", f"{dataset}@theirs")
    zfs(*{"held": ("hold", "backup"), "cloned": ("clone",)}[how], f"{dataset}@theirs",
        *{"held": (), "cloned": (f"{POOL}/rescued",)}[how])  # fmt: skip
    before = time.monotonic()
    with pytest.raises(OSError, match="mounted, held or cloned") as busy:
        driver.remove("key")
    assert busy.value.errno == errno.EBUSY
    assert time.monotonic() - before < 60
    with pytest.raises(NotFound):
        driver.stat("key")
    driver.prepare("key", "base")
    driver.cleanup()
    assert dataset in datasets(driver._top)
    if how == "held":
        zfs("release", "backup", f"{dataset}@theirs")
    else:
        zfs("destroy", f"{POOL}/rescued")
    driver.cleanup()
    driver.check_invariants()
    assert dataset not in datasets(driver._top)


def detached(dataset: str) -> int:
    """A mount that no mount namespace shows, as one that a process keeps open after a lazy unmount."""
    context = mounts.fsopen("zfs")
    try:
        mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, "source", dataset)
        mounts.fsconfig(context, consts.FSCONFIG_CMD_CREATE)
        return mounts.fsmount(context)
    finally:
        os.close(context)


@needs_zfs
def test_a_busy_dataset_is_waited_for(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfs_driver, "_BUSY_SECONDS", 60.0)
    dataset = source(driver.prepare("key", "base"))
    busy = detached(dataset)
    with pytest.raises(OSError, match="busy"):
        zfs("destroy", "-r", dataset)

    def let_go() -> None:
        deadline = time.monotonic() + 60
        while "key" in {info.name for info in driver.walk()} and time.monotonic() < deadline:
            time.sleep(0.01)  # the row goes first, and nothing says so
        os.close(busy)

    thread = threading.Thread(target=let_go)
    thread.start()
    driver.remove("key")
    thread.join()
    assert dataset not in datasets(driver._top)


@needs_zfs
def test_a_busy_dataset_is_not_waited_for_for_ever(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfs_driver, "_BUSY_SECONDS", 0.5)
    dataset = source(driver.prepare("key", "base"))
    busy = detached(dataset)
    with pytest.raises(OSError, match="next clean-up") as left:
        driver.remove("key")
    assert left.value.errno == errno.EBUSY
    os.close(busy)
    driver.cleanup()
    assert dataset not in datasets(driver._top)


@needs_zfs
def test_a_mount_in_another_namespace_is_seen(driver: Driver, tmp_path: Path) -> None:
    tree = driver.prepare("key", "base")
    ready, go = os.pipe(), os.pipe()

    def hold() -> None:
        os.close(go[1])
        libc.bind("unshare", ctypes.c_int)(consts.CLONE_NEWNS)
        mounts.mount("none", "/", None, consts.MS_REC | consts.MS_PRIVATE)
        mount_all(tree, str(tmp_path))
        os.write(ready[1], b".")
        os.read(go[0], 1)

    child = in_child(hold)
    try:
        os.read(ready[0], 1)
        calls: list[Callable[[], None]] = [lambda: driver.commit("name", "key"), lambda: driver.remove("key")]
        for call in calls:
            with pytest.raises(InUse, match=f"key is mounted at {tmp_path} by process {child.pid}"):
                call()
    finally:
        for end in (*ready, *go):
            os.close(end)
    assert child.wait() == 0
    driver.commit("name", "key")


@needs_zfs
def test_a_quota_is_of_what_is_the_containers_own(driver: Driver) -> None:
    """Less than the image has: `refquota` would refuse the first byte."""
    with mounted(driver.prepare("more", "base")) as path:
        Path(path, "large").write_bytes(os.urandom(MIB) * 8)
    driver.commit("large", "more")
    with mounted(driver.prepare("key", "large", quota=4 * MIB)) as path:
        Path(path, "own").write_bytes(os.urandom(MIB))
        with open(f"{path}/too-much", "wb", buffering=0) as file, pytest.raises(OSError) as full:
            for _ in range(16):
                file.write(os.urandom(MIB))
        assert full.value.errno == errno.EDQUOT
        assert Path(path, "large").stat().st_size == 8 * MIB


@needs_zfs
def test_a_volatile_dataset_does_not_wait_for_the_disk(driver: Driver) -> None:
    for volatile, sync in ((True, "disabled"), (False, "standard")):
        dataset = source(driver.prepare("key", "base", volatile=volatile))
        assert zfs("get", "-H", "-ovalue", "sync", dataset).strip() == sync
        driver.remove("key")


@needs_zfs
def test_snapshots_cannot_be_entered(driver: Driver) -> None:
    with mounted(driver.prepare("key", "base")) as path:
        assert not os.path.exists(f"{path}/.zfs/snapshot")


@needs_zfs
def test_datasets_that_others_made_below_ours_stay(driver: Driver) -> None:
    driver.prepare("active")
    foreign = f"{driver._top}/backup"
    zfs("create", foreign)
    driver.cleanup()
    driver.check_invariants()
    assert zfs("list", "-Honame", foreign).strip() == foreign
    zfs("destroy", foreign)


def store_files(root: Path) -> list[str]:
    return [name for name in os.listdir(root) if name.startswith("metadata.db") and (root / name).is_file()]


@needs_zfs
def test_a_store_that_was_lost_is_not_begun_anew(tmp_path: Path) -> None:
    root = tmp_path / "root"
    driver = open_driver("zfs", str(root), OPTIONS)
    assert isinstance(driver, Driver)
    top = driver._top
    driver.prepare("active")
    driver.close()
    for name in store_files(root):
        os.unlink(root / name)
    with pytest.raises(Unavailable, match="restore it from a backup"):
        open_driver("zfs", str(root), OPTIONS)
    zfs("destroy", "-r", top)


@needs_zfs
def test_an_older_copy_of_the_store_destroys_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    driver = open_driver("zfs", str(root), OPTIONS)
    assert isinstance(driver, Driver)
    driver.close()
    backup = {name: (root / name).read_bytes() for name in store_files(root)}
    driver = open_driver("zfs", str(root))
    for key in ("first", "second"):
        driver.prepare(key)
    driver.close()
    for name, content in backup.items():
        (root / name).write_bytes(content)
    driver = open_driver("zfs", str(root))
    assert isinstance(driver, Driver)
    with pytest.raises(Unavailable, match="is an older copy: it knows 0 snapshots"):
        driver.cleanup()
    assert len(driver._listed()) == 2
    driver.close()
    zfs("destroy", "-r", driver._top)


def everything_refused(driver: Driver) -> None:
    before = datasets(f"{POOL}/layers")
    asked: list[Callable[[], object]] = [
        lambda: driver.prepare("new"), lambda: driver.prepare("new", "base"), lambda: driver.commit("name", "key"),
        lambda: driver.remove("key"), lambda: driver.remove("base"), driver.cleanup,
    ]  # fmt: skip
    for ask in asked:
        with pytest.raises(Unavailable, match=r"is not the dataset that the layers of .* are in") as refused:
            ask()
        assert "\n" not in str(refused.value)
    assert datasets(f"{POOL}/layers") == before
    assert kinds(driver) == {"base": Kind.COMMITTED, "key": Kind.ACTIVE}


@needs_zfs
@pytest.mark.parametrize("how", ["made anew", "another root's"])
def test_a_dataset_that_is_not_the_one_of_last_time(how: str, driver: Driver, tmp_path: Path) -> None:
    """What is in it has names as ours have, and no row: it would all be garbage."""
    driver.prepare("key", "base")
    top, aside = driver._top, f"{POOL}/other/aside"
    zfs("rename", top, aside)
    if how == "made anew":
        zfs("create", "-omountpoint=legacy", f"-ofuse-aufs:root={tmp_path}/driver", top)
        zfs("create", f"{top}/0000000123456789")
    else:
        other = reopen(str(tmp_path / "other"))
        other.prepare("theirs")
        other.close()
        zfs("rename", other._top, top)
    again = reopen(str(tmp_path / "driver"))
    everything_refused(again)
    again.close()
    zfs("destroy", "-r", top)
    zfs("rename", aside, top)
    driver.remove("key")


@needs_zfs
def test_a_dataset_that_was_restored_is_the_one_of_last_time(driver: Driver, tmp_path: Path) -> None:
    top, aside, stream = driver._top, f"{POOL}/other/aside", tmp_path / "stream"
    zfs("snapshot", "-r", f"{top}@backup")
    with open(stream, "wb") as file:
        subprocess.run(["zfs", "send", "-R", f"{top}@backup"], stdout=file, check=True)
    zfs("rename", top, aside)
    with open(stream, "rb") as file:
        subprocess.run(["zfs", "receive", "-u", top], stdin=file, check=True)
    again = reopen(str(tmp_path / "driver"))
    with mounted(again.prepare("key", "base")) as path:
        trees.assert_tree(path, TREE)
    again.remove("key")
    again.cleanup()
    again.close()
    zfs("destroy", "-r", aside)


@needs_zfs
def test_a_dataset_of_an_older_version_is_marked(driver: Driver, tmp_path: Path) -> None:
    driver.prepare("key", "base")
    zfs("inherit", "fuse-aufs:store", driver._top)
    with driver._store.write() as transaction:
        transaction.execute("DELETE FROM marks")
    root = zfs("get", "-H", "-ovalue", "fuse-aufs:root", driver._top).strip()
    zfs("inherit", "fuse-aufs:root", driver._top)
    again = reopen(str(tmp_path / "driver"))
    everything_refused(again)
    again.close()
    zfs("set", f"fuse-aufs:root={root}", driver._top)
    again = reopen(str(tmp_path / "driver"))
    again.remove("key")
    again.close()
    assert zfs("get", "-H", "-ovalue", "fuse-aufs:store", driver._top).strip() == driver._store.identity


@needs_zfs
def test_a_root_on_zfs_needs_no_option(tmp_path: Path) -> None:
    dataset = f"{POOL}/home"
    zfs("create", "-omountpoint=legacy", dataset)
    with mounted([Mount("zfs", dataset)]) as path:
        os.mkdir(f"{path}/below")
        assert probe("zfs", f"{path}/below/driver") == (True, f"datasets below {dataset}, on zfs")
        driver = open_driver("zfs", f"{path}/below/driver")
        tree = driver.prepare("key")
        assert source(tree).startswith(f"{dataset}/fuse-aufs-")
        driver.close()
    zfs("destroy", "-r", dataset)
    found = probe("zfs", str(tmp_path))
    assert not found.works and "--storage-opt zfs.fsname=POOL/DATASET" in found.reason


@needs_zfs
def test_two_roots_below_one_dataset(driver: Driver, tmp_path: Path) -> None:
    other = reopen(str(tmp_path / "other"))
    other.prepare("key")
    driver.cleanup()
    other.check_invariants()
    other.remove("key")
    zfs("destroy", "-r", other._top)
    other.close()


@needs_zfs
@pytest.mark.parametrize(
    ("fsname", "says"),
    [
        (f"{POOL}/missing", "there is no dataset .*/missing: zpool import, or zfs create"),
        ("nothing", "there is no dataset nothing"),
        ("-x", "names no dataset"),
        (f"{POOL}/layers@snapshot", "names no dataset"),
        ("", "names no dataset"),
    ],
)
def test_datasets_that_cannot_be_used(tmp_path: Path, fsname: str, says: str) -> None:
    with pytest.raises(Unavailable, match=says) as refused:
        open_driver("zfs", str(tmp_path / "driver"), {"zfs.fsname": fsname})
    assert "\n" not in str(refused.value)


@needs_zfs
def test_a_pool_that_is_gone_is_named(tmp_path: Path) -> None:
    driver = reopen(str(tmp_path / "driver"))
    zfs("destroy", "-r", driver._top)
    for call in (lambda: driver.prepare("key"), driver.cleanup):
        with pytest.raises(Unavailable, match="is missing: is its pool imported"):
            call()
    driver.close()


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    if not missing():
        pytest.skip("zfs is all there")
    with pytest.raises(Unavailable, match=r"zfs.*(apt-get install|modprobe)"):
        open_driver("zfs", str(tmp_path / "driver"), {"zfs.fsname": "tank"})
    assert os.listdir(tmp_path) == []


# A process is killed while a zfs command runs that changes something, after it, and after COMMIT: nothing that lasts
# happens in between.
_MOMENTS = ("command.communicate(", "if command.returncode == 0", "if connection.in_transaction:")


def is_moment(frame: FrameType) -> bool:
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    if not any(moment in line for moment in _MOMENTS):
        return False
    local = frame.f_locals
    return local.get("begin") != "BEGIN" and local.get("arguments", ("",))[0] not in ("list", "get")


def killed_at_each_moment(
    root: str, operation: Callable[[Driver], object], *, opening: bool = False
) -> Iterator[Driver]:
    """Run `operation` in a process that is killed at its n-th moment, for every n, and give the driver as it is found
    after that and cleanup(). Ends with the n that the operation does not reach: there it is done. `opening`: the
    moments of opening the driver count as well."""
    last, done = 0, False
    while not done:
        last += 1

        def run(last: int = last) -> None:
            count = 0

            def trace(frame: FrameType, event: str, argument: Any) -> Any:
                nonlocal count
                if "/drivers/" not in frame.f_code.co_filename:
                    return None
                if event == "line" and is_moment(frame):
                    count += 1
                    if count == last:
                        os.kill(os.getpid(), signal.SIGKILL)
                return trace

            if opening:
                sys.settrace(trace)
            driver = reopen(root)
            sys.settrace(trace)
            operation(driver)
            sys.settrace(None)
            driver.close()

        status = in_child(run).wait()
        assert status in (0, -signal.SIGKILL)
        done = status == 0
        driver = reopen(root)
        try:
            driver.cleanup()
            driver.check_invariants()
            yield driver
        finally:
            driver.close()
    assert last > 3, "the moments were not seen"


def kinds(driver: Driver) -> dict[str, Kind]:
    return {info.name: info.kind for info in driver.walk()}


@needs_zfs
def test_killed_in_the_first_open(tmp_path: Path) -> None:
    root = str(tmp_path / "driver")
    before = datasets(OPTIONS["zfs.fsname"])
    for driver in killed_at_each_moment(root, lambda driver: None, opening=True):
        assert set(datasets(OPTIONS["zfs.fsname"])) == {*before, driver._top}
        zfs("destroy", "-r", driver._top)
        driver.close()
        shutil.rmtree(root)


def given(dataset: str) -> set[str]:
    return set(zfs("get", "-Hr", "-slocal", "-oproperty,value", "all", dataset).splitlines())


@needs_zfs
def test_cut_off_before_its_properties(tmp_path: Path) -> None:
    """A dataset is made first and given its properties then: what has been found of the name without any is made whole,
    and what has others is not ours."""
    root = str(tmp_path / "driver")
    driver = reopen(root)
    top, wanted = driver._top, given(driver._top)
    with driver._store.write() as transaction:
        transaction.execute("UPDATE place SET made = 0")
    driver.close()
    zfs("destroy", top)
    zfs("create", top)
    reopen(root).close()
    assert given(top) == wanted

    driver = reopen(root)
    with driver._store.write() as transaction:
        transaction.execute("UPDATE place SET made = 0")
    driver.close()
    zfs("destroy", top)
    zfs("create", "-ocompression=zstd", top)
    with pytest.raises(Unavailable, match="somebody else has just made it"):
        reopen(root)
    zfs("destroy", top)


@needs_zfs
def test_killed_in_prepare(driver: Driver, tmp_path: Path) -> None:
    last = {}
    for found in killed_at_each_moment(str(tmp_path / "driver"), lambda driver: driver.prepare("key", "base")):
        last = kinds(found)
        if "key" in last:
            with mounted(found.mounts("key")) as path:
                trees.assert_tree(path, TREE)
            found.remove("key")
        else:
            assert last == {"base": Kind.COMMITTED}
    assert "key" in last


@needs_zfs
def test_cleanup_waits_for_a_command_that_outlives_its_process(driver: Driver, tmp_path: Path) -> None:
    """What `zfs clone` makes after its parent was killed is not there yet when cleanup() could look for it."""
    root = str(tmp_path / "driver")
    told, tell = os.pipe()

    def run() -> None:
        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "line" and frame.f_code.co_name == "_run" and is_moment(frame):
                orphan = frame.f_locals["command"].pid
                os.kill(orphan, signal.SIGSTOP)
                os.write(tell, str(orphan).encode())
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        mine = reopen(root)
        sys.settrace(trace)
        mine.prepare("key", "base")

    assert in_child(run).wait() == -signal.SIGKILL
    orphan = int(os.read(told, 100))
    os.close(told)
    os.close(tell)
    with open(f"{root}/making", "rb") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(orphan, signal.SIGCONT)
    driver.cleanup()
    driver.check_invariants()
    assert kinds(driver) == {"base": Kind.COMMITTED}


@needs_zfs
def test_killed_in_commit(driver: Driver, tmp_path: Path) -> None:
    def fill(driver: Driver) -> None:
        with mounted(driver.prepare("key", "base")) as path:
            Path(path, "new").write_text("written")

    fill(driver)
    last = {}
    for found in killed_at_each_moment(str(tmp_path / "driver"), lambda driver: driver.commit("name", "key")):
        last = kinds(found)
        assert last in ({"base": Kind.COMMITTED, "key": Kind.ACTIVE}, {"base": Kind.COMMITTED, "name": Kind.COMMITTED})
        tree = found.mounts("key") if "key" in last else found.view("look", "name")
        with mounted(tree) as path:
            trees.assert_tree(path, {**TREE, "new": "written"})
        if "name" in last:
            for name in ("look", "name"):
                found.remove(name)
            fill(found)
    assert "name" in last


@needs_zfs
def test_killed_in_remove(driver: Driver, tmp_path: Path) -> None:
    driver.prepare("key", "base")
    last = {}
    for found in killed_at_each_moment(str(tmp_path / "driver"), lambda driver: driver.remove("key")):
        last = kinds(found)
        if "key" not in last:
            assert last == {"base": Kind.COMMITTED}
            found.prepare("key", "base")
    assert "key" not in last


@needs_zfs
def test_killed_in_cleanup(driver: Driver, tmp_path: Path) -> None:
    """Garbage on garbage, and a snapshot of a commit that never was."""

    def litter() -> None:
        base = source(driver.view("look", "base"))
        driver.remove("look")
        zfs("clone", base, f"{driver._top}/0000000123456789")
        zfs("snapshot", f"{driver._top}/0000000123456789@layer-0123456789abcdef")
        zfs("clone", f"{driver._top}/0000000123456789@layer-0123456789abcdef", f"{driver._top}/0000000198765432")
        zfs("snapshot", f"{base.partition('@')[0]}@layer-0123456789abcdef")

    litter()
    for found in killed_at_each_moment(str(tmp_path / "driver"), lambda driver: driver.cleanup()):
        assert kinds(found) == {"base": Kind.COMMITTED}
        litter()
    driver.cleanup()
