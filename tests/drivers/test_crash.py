"""A driver that is killed before any step of any method, and what the next one to open its root finds."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.api import Kind
from drivers.directories import DirectorySnapshotter
from drivers.mounts import Mount, mounted
from drivers.registry import NAMES, open_driver, probe
from tests import trees
from tests.drivers.children import in_child
from tests.drivers.steps import before_each_step

pytestmark = pytest.mark.needs("tmpfs")

TREE: trees.Tree = {"f": "content", "dir": {"g": trees.File("x" * 5000, mode=0o600)}, "link": trees.Symlink(target="f")}

Operation = Callable[[DirectorySnapshotter], None]


# Which drivers differ in a method is what each test names; the rest of a method is drivers.directories for all.
def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("root", names, indirect=True)


@pytest.fixture
def root(request: pytest.FixtureRequest, memory: Path) -> str:
    """The root of a driver with one committed snapshot, "base"; its last part is the driver's name."""
    name: str = request.param
    found = probe(name, str(memory))
    if not found.works:
        pytest.skip(f"{name}: {found.reason}")
    root = str(memory / name)
    driver = reopen(root)
    driver.prepare("unpack")
    trees.build(layer(driver, "unpack"), TREE)
    driver.commit("base", "unpack")
    driver.close()
    return root


def reopen(root: str) -> DirectorySnapshotter:
    driver = open_driver(os.path.basename(root), root)
    assert isinstance(driver, DirectorySnapshotter)
    return driver


def layer(driver: DirectorySnapshotter, key: str) -> str:
    """The directory in which the snapshot keeps its own."""
    with driver._store.read() as transaction:
        return driver._layout.join(transaction.get(key).id, "fs")


def killed_before_each_step(root: str, operation: Operation) -> Iterator[DirectorySnapshotter]:
    """Run `operation` in a process that is killed before its n-th step, for every n, and give the driver as it is
    found after that and cleanup(). Ends with the n that the operation does not reach: there it is done."""
    step, done = 0, False
    while not done:
        step += 1

        def run(last: int = step) -> None:
            driver = reopen(root)

            def kill(number: int) -> None:
                if number == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            before_each_step(lambda: operation(driver), kill)
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
    assert step > 20, "the steps were not seen"


def kinds(driver: DirectorySnapshotter) -> dict[str, Kind]:
    return {info.name: info.kind for info in driver.walk()}


@on(*NAMES)
@pytest.mark.parametrize(("method", "kind"), [("prepare", Kind.ACTIVE), ("view", Kind.VIEW)])
def test_killed_in(root: str, method: str, kind: Kind) -> None:
    """The snapshot is there whole, or there is none."""
    last = None
    for driver in killed_before_each_step(root, lambda driver: getattr(driver, method)("key", "base")):
        last = kinds(driver)
        if "key" not in last:
            assert last == {"base": Kind.COMMITTED}
            continue
        assert last == {"base": Kind.COMMITTED, "key": kind}
        [mount] = driver.mounts("key")
        assert os.path.isdir(layer(driver, "key"))
        if mount.type == "bind":
            trees.assert_tree(mount.source, TREE)
        if mount.type == "overlay":
            assert os.listdir(os.path.join(os.path.dirname(layer(driver, "key")), "work")) == []
        driver.remove("key")
    assert last is not None and "key" in last


@on("fuse-aufs", "vfs")
def test_killed_in_commit(root: str) -> None:
    """It is active with all that was written, or committed with it."""

    def fill(driver: DirectorySnapshotter) -> None:
        driver.prepare("key", "base")
        Path(layer(driver, "key"), "new").write_text("written")
        os.makedirs(f"{layer(driver, 'key')}/.wh..wh.orph/left", exist_ok=True)

    driver = reopen(root)
    fill(driver)
    driver.close()
    last = None
    for driver in killed_before_each_step(root, lambda driver: driver.commit("name", "key")):
        last = kinds(driver)
        if last == {"base": Kind.COMMITTED, "key": Kind.ACTIVE}:
            assert Path(layer(driver, "key"), "new").read_text() == "written"
        else:
            assert last == {"base": Kind.COMMITTED, "name": Kind.COMMITTED}
            assert Path(layer(driver, "name"), "new").read_text() == "written"
            assert driver.usage("name").inodes >= 2
            driver.remove("name")
            fill(driver)
    assert last is not None and "name" in last


@on("fuse-aufs", "vfs")
def test_killed_in_remove(root: str) -> None:
    """It is there whole, or gone and cleaned up."""
    driver = reopen(root)
    driver.prepare("key", "base")
    driver.close()
    last = None
    for driver in killed_before_each_step(root, lambda driver: driver.remove("key")):
        last = kinds(driver)
        if "key" in last:
            assert os.path.isdir(layer(driver, "key"))
        else:
            assert last == {"base": Kind.COMMITTED}
            driver.prepare("key", "base")
    assert last is not None and "key" not in last


@on("vfs")
def test_killed_in_cleanup(root: str) -> None:
    """What one cleanup() has not done, the next one does."""
    snapshots = os.path.join(root, "snapshots")

    def litter() -> None:
        for name in ("new-0123", "rm-4567", "999"):
            trees.build(os.path.join(snapshots, name, "fs"), TREE)

    litter()
    for driver in killed_before_each_step(root, lambda driver: driver.cleanup()):
        assert kinds(driver) == {"base": Kind.COMMITTED}
        trees.assert_tree(layer(driver, "base"), TREE)
        litter()


def test_a_full_disk() -> None:
    """ENOSPC in the middle of a copy: the caller gets it, and nothing is left even without cleanup()."""
    with mounted([Mount("tmpfs", "tmpfs", ("size=4m",))]) as path:
        driver = reopen(f"{path}/vfs")
        driver.prepare("unpack")
        trees.build(layer(driver, "unpack"), {"small": "x", "large": os.urandom(3 << 20)})
        driver.commit("base", "unpack")
        with pytest.raises(OSError, match="No space left") as full:
            driver.prepare("key", "base")
        assert full.value.errno == errno.ENOSPC
        driver.check_invariants()
        assert kinds(driver) == {"base": Kind.COMMITTED}
        driver.view("key", "base")
        driver.close()
