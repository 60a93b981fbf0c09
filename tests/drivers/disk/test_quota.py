"""Project quotas of the file system below as the quota of a container; where the kernel has none, in the guest."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from drivers.api import Snapshotter
from drivers.catalog import open_driver, probe
from drivers.disk import quota
from drivers.disk.trees import DIRECTORY
from drivers.errors import NotSupported
from drivers.graph.directories import DirectorySnapshotter
from tests import trees
from tests.children import in_child
from tests.drivers.disk.limited import MAKERS, MIB, disk
from tests.mounting import mounted
from tests.steps import before_each_step
from unionfs.linux import consts, quotactl

pytestmark = pytest.mark.needs("loop")


@pytest.fixture(params=list(MAKERS))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with disk(request.param, tmp_path / "image", "prjquota") as path:
        yield path


@pytest.fixture(params=["overlay2", "fuse-aufs"])
def driver(request: pytest.FixtureRequest, place: Path) -> Iterator[DirectorySnapshotter]:
    found = probe(request.param, str(place))
    if not found.works:
        pytest.skip(f"{request.param}: {found.reason}")
    opened = open_driver(request.param, str(place / "root"))
    assert isinstance(opened, DirectorySnapshotter)
    with mounted(opened.prepare("unpack")) as path:
        trees.build(path, {"large": os.urandom(12 * MIB), "dir": {"small": "small"}})
    opened.commit("base", "unpack")
    yield opened
    opened.cleanup()
    opened.check_invariants()
    opened.close()


_BLOCK = os.urandom(MIB)


def fill(path: str, size: int) -> int:
    """Write up to `size` bytes to the file, and give how many were taken."""
    written = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while written < size:
            written += os.write(fd, _BLOCK[: size - written])
        os.fsync(fd)
    except OSError as error:
        assert error.errno in (errno.EDQUOT, errno.ENOSPC)
    finally:
        os.close(fd)
    return written


def free(path: str) -> int:
    """Bytes that can still be written."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def layer(driver: DirectorySnapshotter, key: str) -> str:
    with driver._store.read() as transaction:
        return driver._layer(transaction.get(key))


def project(path: str) -> int:
    fd = os.open(path, DIRECTORY)
    try:
        return quota._project(fd)
    finally:
        os.close(fd)


def projects(place: Path) -> list[int]:
    """Of our range, those that have files or a limit."""
    fd = os.open(place, DIRECTORY)
    try:
        found, number = [], quota.FIRST_PROJECT
        while (used := quotactl.get_next(fd, number)) is not None:
            number = used.project + 1
            if used.limit or quotactl.get(fd, used.project).inodes:
                found.append(used.project)
        return found
    finally:
        os.close(fd)


def assert_projects(place: Path, expected: list[int]) -> None:
    """XFS takes what was deleted off a project a while later, and nothing tells when (xfs_inodegc_worker())."""
    deadline = time.monotonic() + 30
    while projects(place) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert projects(place) == expected


def test_writing_more_than_the_quota(driver: Snapshotter) -> None:
    """EDQUOT or ENOSPC; what is deleted can be written again."""
    with mounted(driver.prepare("key", "base", quota=50 * MIB)) as path:
        assert 45 * MIB <= fill(f"{path}/f", 100 * MIB) <= 50 * MIB
        os.unlink(f"{path}/f")
        os.sync()
        # As in assert_projects: XFS gives back late.
        deadline = time.monotonic() + 30
        while free(path) < 40 * MIB and time.monotonic() < deadline:
            time.sleep(0.02)
        assert fill(f"{path}/dir/g", 10 * MIB) == 10 * MIB
    driver.remove("key")


def test_a_first_layer_has_a_quota(driver: Snapshotter) -> None:
    """Its mount is a bind: root with CAP_SYS_RESOURCE would not be limited on ext4, and containers do not have it."""
    from unionfs.linux.processes import WithoutCapability

    with mounted(driver.prepare("key", quota=4 * MIB)) as path, WithoutCapability(consts.CAP_SYS_RESOURCE):
        assert fill(f"{path}/f", 8 * MIB) <= 4 * MIB
    driver.remove("key")


def test_a_copy_up_counts(driver: Snapshotter) -> None:
    """One that is over the quota fails and leaves the file as it was; one that is not takes of it."""
    with mounted(driver.prepare("small", "base", quota=8 * MIB)) as path:
        before = Path(path, "large").read_bytes()
        with pytest.raises(OSError, match=r"quota exceeded|No space left") as refused:
            with open(f"{path}/large", "r+b") as file:
                file.write(b"x")
        assert refused.value.errno in (errno.EDQUOT, errno.ENOSPC)
        assert Path(path, "large").read_bytes() == before
        Path(path, "dir/small").write_text("changed")
    with mounted(driver.prepare("large", "base", quota=20 * MIB)) as path:
        with open(f"{path}/large", "r+b") as file:
            file.write(b"x")
        assert 4 * MIB <= fill(f"{path}/f", 20 * MIB) <= 9 * MIB
    driver.remove("small")
    driver.remove("large")


def test_the_container_sees_its_size(driver: Snapshotter) -> None:
    with mounted(driver.prepare("key", "base", quota=50 * MIB)) as path:
        found = os.statvfs(path)
        assert found.f_blocks * found.f_frsize == 50 * MIB
        fill(f"{path}/f", 10 * MIB)
        found = os.statvfs(path)
        assert 35 * MIB < found.f_bavail * found.f_frsize < 41 * MIB
    driver.remove("key")


def test_projects_go_with_their_snapshots(driver: DirectorySnapshotter, place: Path) -> None:
    for number in range(3):
        driver.prepare(f"key-{number}", "base", quota=10 * MIB)
    assert len({project(layer(driver, f"key-{number}")) for number in range(3)}) == 3
    assert len(projects(place)) == 3
    with mounted(driver.mounts("key-1")) as path:
        trees.build(path, {"a": {"b": {"c": {"d": "d"}}, "e": "e"}})
    driver.commit("name", "key-1")
    driver.remove("key-0")
    driver.remove("key-2")
    assert_projects(place, [project(layer(driver, "name"))])
    driver.remove("name")
    assert_projects(place, [])


def test_what_gives_itself_other_projects_can_be_removed(driver: DirectorySnapshotter) -> None:
    """Root in a container can (chattr -p): what is moved while it is deleted is then of several projects."""
    driver.prepare("key", quota=10 * MIB)
    top = Path(layer(driver, "key"))
    (top / "a/b/c").mkdir(parents=True)
    for path, project in (("a/b", 7), ("", quota.FIRST_PROJECT + 1000)):
        fd = os.open(top / path, os.O_RDONLY)
        quota._set_project(fd, project)
        os.close(fd)
    driver.remove("key")
    driver.check_invariants()


@pytest.mark.parametrize("limited", [True, False])
def test_who_gives_itself_the_project_of_another_does_not_take_its_limit_along(
    driver: DirectorySnapshotter, place: Path, limited: bool
) -> None:
    driver.prepare("victim", "base", quota=10 * MIB)
    theirs = project(layer(driver, "victim"))
    driver.prepare("key", quota=20 * MIB if limited else 0)
    fd = os.open(layer(driver, "key"), DIRECTORY)
    quota._set_project(fd, theirs)
    assert quotactl.get(fd, theirs).limit == 10 * MIB
    os.close(fd)
    driver.remove("key")
    assert_projects(place, [theirs])
    fd = os.open(layer(driver, "victim"), DIRECTORY)
    assert quotactl.get(fd, theirs).limit == 10 * MIB
    os.close(fd)
    driver.remove("victim")
    assert_projects(place, [])


def test_a_limited_layer_of_an_older_version(driver: DirectorySnapshotter, place: Path) -> None:
    """Nothing beside it says which project it was given; ext4 at once, XFS later, knows that it has no files left."""
    driver.prepare("key", quota=10 * MIB)
    os.unlink(Path(layer(driver, "key")).parent / "project")
    number = project(layer(driver, "key"))
    driver.remove("key")
    fd = os.open(place, DIRECTORY)
    try:
        if quotactl.get(fd, number).limit:
            assert Path("/proc/mounts").read_text().count(f"{place} xfs")
            quotactl.set_limit(fd, number, 0)
    finally:
        os.close(fd)


def test_changes_of_a_limited_layer_are_as_ever(driver: Snapshotter) -> None:
    """Renames, links and whiteouts between the directories of a project, and a layer that is committed from it."""
    with mounted(driver.prepare("key", "base", quota=50 * MIB)) as path:
        trees.build(path, {"new": {"f": "f"}})
        os.rename(f"{path}/new/f", f"{path}/dir/f")
        os.link(f"{path}/dir/f", f"{path}/linked")
        os.unlink(f"{path}/large")
        os.rename(f"{path}/dir/small", f"{path}/small")
    driver.commit("name", "key")
    with mounted(driver.view("view", "name")) as path:
        trees.assert_tree(path, {"new": {}, "dir": {"f": "f"}, "linked": trees.HardLink("dir/f"), "small": "small"})
    driver.remove("view")
    driver.remove("name")


def test_projects_of_others_are_left_alone(driver: DirectorySnapshotter, place: Path) -> None:
    """Neither one that has files, nor one that has only a limit, nor one that the root itself is in."""
    theirs = place / "theirs"
    theirs.mkdir()
    fd = os.open(theirs, DIRECTORY)
    try:
        quota._set_project(fd, quota.FIRST_PROJECT)
        quotactl.set_limit(fd, quota.FIRST_PROJECT + 1, 7 * MIB)
        driver.prepare("key", "base", quota=10 * MIB)
        assert project(layer(driver, "key")) == quota.FIRST_PROJECT + 2
        driver.remove("key")
        assert_projects(place, [quota.FIRST_PROJECT, quota.FIRST_PROJECT + 1])
        assert quotactl.get(fd, quota.FIRST_PROJECT + 1).limit == 7 * MIB
        quotactl.set_limit(fd, quota.FIRST_PROJECT + 1, 0)
    finally:
        os.close(fd)


def test_a_root_in_a_project_of_somebody_else(place: Path) -> None:
    """Its directories inherit it, ours but the limited ones; it is not ours to give back."""
    root = place / "root"
    root.mkdir()
    fd = os.open(root, DIRECTORY)
    try:
        quota._set_project(fd, quota.FIRST_PROJECT)
        quotactl.set_limit(fd, quota.FIRST_PROJECT, 300 * MIB)
        driver = open_driver("overlay2", str(root))
        with mounted(driver.prepare("unpack")) as path:
            trees.build(path, {"d": {"e": {"f": "f"}}})
        driver.commit("base", "unpack")
        with mounted(driver.prepare("key", "base", quota=10 * MIB)) as path:
            trees.build(f"{path}/d/e", {"g": {"h": {"i": "i"}}})
        driver.remove("key")
        driver.remove("base")
        driver.check_invariants()
        driver.close()
        assert quotactl.get(fd, quota.FIRST_PROJECT).limit == 300 * MIB
        assert_projects(place, [quota.FIRST_PROJECT])
    finally:
        os.close(fd)


def test_ids_that_the_administrator_has_named(
    driver: DirectorySnapshotter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = tmp_path / "projid"
    register.write_text(f"# names\nweb:{quota.FIRST_PROJECT}\n")
    monkeypatch.setattr(quota, "_REGISTERS", (str(register), str(tmp_path / "missing")))
    driver.prepare("key", "base", quota=10 * MIB)
    assert project(layer(driver, "key")) == quota.FIRST_PROJECT + 1
    driver.remove("key")


def test_many_ask_at_once(driver: DirectorySnapshotter, place: Path) -> None:
    """Each gets a project of its own."""
    name = driver.NAME

    def work(number: int) -> None:
        mine = open_driver(name, str(place / "root"))
        for turn in range(4):
            mine.prepare(f"key-{number}-{turn}", "base", quota=10 * MIB)
        mine.close()

    children = [in_child(partial(work, number)) for number in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    keys = [f"key-{number}-{turn}" for number in range(4) for turn in range(4)]
    given = {project(layer(driver, key)) for key in keys}
    assert len(given) == 16
    fd = os.open(place, DIRECTORY)
    try:
        assert {quotactl.get(fd, number).limit for number in given} == {10 * MIB}
    finally:
        os.close(fd)
    for key in keys:
        driver.remove(key)


def test_two_that_have_found_the_same_id(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another puts a directory into it between our look and ours: whoever sees two takes the next."""
    mine, theirs = place / "mine", place / "theirs"
    mine.mkdir()
    theirs.mkdir()
    real = quota._set_project
    fd = os.open(theirs, DIRECTORY)

    def interfere(mine_fd: int, number: int) -> None:
        if number == quota.FIRST_PROJECT:
            real(fd, number)
        real(mine_fd, number)

    monkeypatch.setattr(quota, "_set_project", interfere)
    try:
        quota.limit_directories([str(mine)], MIB)
        assert project(str(mine)) == quota.FIRST_PROJECT + 1
        assert quotactl.get(fd, quota.FIRST_PROJECT).limit == 0
    finally:
        os.close(fd)


@pytest.mark.parametrize("method", ["prepare", "remove"])
def test_killed_at_any_step(driver: DirectorySnapshotter, place: Path, method: str) -> None:
    """No project is left without a snapshot."""
    name, root = driver.NAME, str(place / "root")

    def run(last: int) -> None:
        def kill(number: int) -> None:
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)

        mine = open_driver(name, root)
        if method == "prepare":
            before_each_step(lambda: mine.prepare("key", "base", quota=10 * MIB), kill, each_way=False)
        else:
            before_each_step(lambda: mine.remove("key"), kill, each_way=False)
        mine.close()

    step, status = 1, -signal.SIGKILL
    while status:
        if method == "remove" and "key" not in {info.name for info in driver.walk()}:
            driver.prepare("key", "base", quota=10 * MIB)
        status = in_child(partial(run, step)).wait()
        assert status in (0, -signal.SIGKILL)
        driver.cleanup()
        keys = [info.name for info in driver.walk() if info.name != "base"]
        assert_projects(place, [project(layer(driver, key)) for key in keys])
        if method == "prepare" and keys:
            driver.remove("key")
        step += 11
    assert step > 20


@pytest.mark.parametrize(("kind", "option", "advice"), [
    ("ext4", "noquota", r"ext4 at .* has no project quotas; switch them on with `tune2fs -O project,quota"),
    ("xfs", "noquota", r"xfs at .* does not enforce project quotas; mount it with the option prjquota"),
])
def test_what_is_missing_is_said(tmp_path: Path, kind: str, option: str, advice: str) -> None:
    with disk(kind, tmp_path / "image", option) as path:
        for name in ("overlay2", "fuse-aufs"):
            driver = open_driver(name, str(path / name))
            with pytest.raises(NotSupported, match=advice):
                driver.prepare("key", quota=MIB)
            driver.prepare("key")
            driver.close()


def test_a_file_system_without_projects(memory: Path) -> None:
    driver = open_driver("overlay2", str(memory / "root"))
    with pytest.raises(NotSupported, match=r"tmpfs has no project quotas; choose btrfs"):
        driver.prepare("key", quota=MIB)
    assert list(driver.walk()) == []
    driver.close()
