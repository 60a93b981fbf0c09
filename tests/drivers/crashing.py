"""A driver that is killed before any step of any method, and what the next one to open its root finds.

A driver's test module is one class:

    class TestVfs(CrashContract):
        driver_name = "vfs"

A method is run in a process of its own that is killed (SIGKILL) before its n-th step, for every n until it is done.
After each, another process's driver opens the root and cleans up; then what was committed is there whole, what was in
progress is there whole or not at all, and nothing else is there: see `orphans`.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from drivers.api import Kind, Snapshotter
from drivers.diff import apply
from drivers.graph.snapshotter import GraphSnapshotter
from tests import trees
from tests.children import in_child
from tests.contracts.snapshotter.words import Words
from tests.mounting import mounted
from tests.steps import PACKAGE, before_each_step
from unionfs.linux.mounts import mountinfo

TREE: trees.Tree = {"f": "content", "dir": {"g": trees.File("x" * 5000, mode=0o600)}, "link": trees.Symlink(target="f")}
CHANGED: trees.Tree = {**TREE, "new": "written"}
APPLIED: trees.Tree = {"dir": {"g": "y" * 3000, "h": ""}, "link": trees.Symlink(target="f"), "new": {"i": "i"}}

Operation = Callable[[GraphSnapshotter], object]


class CrashContract(Words):
    # The files (beginnings of their paths) whose lines are steps; whether a line reached in two ways is two steps; and
    # of how many steps one is tried, for drivers that take long: of a method's, of opening, closing and cleaning up,
    # which other drivers may have in common with this one (0: as of a method's), and of unpacking an archive.
    steps_within: ClassVar[Sequence[str]] = (PACKAGE,)
    each_way: ClassVar[bool] = True
    stride: ClassVar[int] = 1
    upkeep_stride: ClassVar[int] = 0
    unpacking_stride: ClassVar[int] = 11

    @pytest.fixture
    def place(self, memory: Path) -> Path:
        """Processes die here and not disks, so the root is in memory; a driver's class may say otherwise."""
        return memory

    @pytest.fixture
    def based(self, root: str) -> Iterator[str]:
        """A root with one committed snapshot, "base"."""
        driver = self.open(root)
        self.layer(driver, "base", TREE)
        driver.close()
        yield root
        driver = self.open(root)
        self.close(driver)

    # What a driver's class may know better.

    def orphans(self, root: str) -> Sequence[str]:
        """What is left on the machine, in words, now that nobody has the root open and it has no snapshot that can be
        mounted. Directories and whatever has rows are for check_invariants() to find."""
        loops = []
        for name in os.listdir("/sys/block"):
            with suppress(OSError):  # no loop device, or another's that goes while we look
                file = Path("/sys/block", name, "loop/backing_file").read_text().strip()
                if file.startswith(root):
                    loops.append(f"loop device {name} of {file}")
        return [*loops, *(f"mount at {point.target}" for point in mountinfo() if point.target.startswith(root + "/"))]

    def inside(self, driver: Snapshotter, key: str) -> AbstractContextManager[str]:
        """The tree of an active snapshot, to write to and look at; or something quicker that has the same in it."""
        return mounted(driver.mounts(key))

    # The loop.

    def killed(self, run: Callable[[Callable[[int], None]], object], stride: int = 0) -> Iterator[None]:
        """Run `run(before_step)` in a process that dies when it calls before_step(n), for n = 1, 1 + stride, and so on
        until it does not; stop after each."""
        done = False
        for last in itertools.count(1, stride or self.stride):

            def before_step(number: int, last: int = last) -> None:
                if number == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            status = in_child(partial(run, before_step)).wait()
            assert status in (0, -signal.SIGKILL)
            done = status == 0
            yield
            if done:
                assert last > 5, "the steps were not seen"
                return

    def run(self, root: str, operation: Operation, before_step: Callable[[int], None]) -> None:
        """The operation on a driver that was opened before its first step and is closed after its last."""
        driver = self.open(root)
        self.trace(lambda: operation(driver), before_step)
        driver.close()

    def trace(self, function: Callable[[], object], before_step: Callable[[int], None]) -> int:
        return before_each_step(function, before_step, within=self.steps_within, each_way=self.each_way)

    def found(self, root: str, operation: Operation, stride: int = 0) -> Iterator[GraphSnapshotter]:
        """The driver as it is found after each step that `operation` was killed before, and cleanup()."""
        for _ in self.killed(partial(self.run, root, operation), stride):
            with self.cleaned(root) as driver:
                yield driver

    @contextmanager
    def cleaned(self, root: str) -> Iterator[GraphSnapshotter]:
        driver = self.open(root)
        try:
            driver.cleanup()
            driver.check_invariants()
            with self.looking(driver, "base") as path:
                trees.assert_tree(path, TREE)
            yield driver
            is_quiet = all(info.kind is Kind.COMMITTED for info in driver.walk())
        finally:
            driver.close()
        if is_quiet:
            assert self.orphans(root) == []

    def kinds(self, driver: Snapshotter) -> dict[str, Kind]:
        """The snapshots beside "base"."""
        return {info.name: info.kind for info in driver.walk() if info.name != "base"}

    # The methods.

    def test_killed_in_prepare(self, based: str) -> None:
        """The snapshot is there and can be written to, or there is none."""
        last: dict[str, Kind] = {}
        for driver in self.found(based, lambda driver: driver.prepare("key", "base")):
            last = self.kinds(driver)
            if last:
                assert last == {"key": Kind.ACTIVE}
                with mounted(driver.mounts("key")) as path:
                    trees.assert_tree(path, TREE)
                    Path(path, "new").write_text("")
                driver.remove("key")
        assert last

    def test_killed_in_view(self, based: str) -> None:
        last: dict[str, Kind] = {}
        for driver in self.found(based, lambda driver: driver.view("key", "base")):
            last = self.kinds(driver)
            if last:
                assert last == {"key": Kind.VIEW}
                with mounted(driver.mounts("key")) as path:
                    trees.assert_tree(path, TREE)
                driver.remove("key")
        assert last

    def test_killed_in_commit(self, based: str) -> None:
        """It is active with all that was written, or committed with it."""

        def fill(driver: Snapshotter) -> None:
            driver.prepare("key", "base")
            with self.inside(driver, "key") as path:
                Path(path, "new").write_text("written")

        with self.cleaned(based) as driver:
            fill(driver)
        last: dict[str, Kind] = {}
        for driver in self.found(based, lambda driver: driver.commit("name", "key")):
            last = self.kinds(driver)
            if last == {"key": Kind.ACTIVE}:
                with self.inside(driver, "key") as path:
                    assert Path(path, "new").read_text() == "written"
            else:
                assert last == {"name": Kind.COMMITTED}
                with self.looking(driver, "name") as path:
                    trees.assert_tree(path, CHANGED)
                assert driver.usage("name").size > 0
                driver.remove("name")
                fill(driver)
        assert "name" in last

    @pytest.mark.parametrize("kind", [Kind.ACTIVE, Kind.COMMITTED])
    def test_killed_in_remove(self, based: str, kind: Kind) -> None:
        """It is there whole, or gone and cleaned up."""

        def make(driver: Snapshotter) -> None:
            driver.prepare("key", "base")
            if kind is Kind.COMMITTED:
                driver.commit("name", "key")

        with self.cleaned(based) as driver:
            make(driver)
        name = "key" if kind is Kind.ACTIVE else "name"
        was_there, last = False, {"": kind}
        for driver in self.found(based, lambda driver: driver.remove(name)):
            last = self.kinds(driver)
            if not last:
                make(driver)
            elif not was_there:  # once: it takes long, and the driver has not touched the tree of what has a row
                was_there = True
                with mounted(driver.mounts("key")) if name == "key" else self.looking(driver, name) as path:
                    trees.assert_tree(path, TREE)
            assert last in ({}, {name: kind})
        assert last == {}

    def test_killed_in_cleanup(self, based: str) -> None:
        """What one cleanup() has not done, the next one does. What there is to clean up, others were killed over."""
        share = itertools.cycle([turn * 19 % 50 / 50 for turn in range(50)])  # each, far from the one before

        def prepare(driver: Snapshotter) -> None:
            driver.prepare("litter", "base")

        def remove(driver: Snapshotter) -> None:
            driver.remove("litter")

        with self.cleaned(based) as driver:
            to_prepare = self.trace(lambda: prepare(driver), lambda number: None)
            to_remove = self.trace(lambda: remove(driver), lambda number: None)

        def fail(operation: Callable[[Snapshotter], None], steps: int) -> None:
            last = round(steps * next(share))

            def before_step(number: int) -> None:
                if number == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            in_child(lambda: self.run(based, operation, before_step)).wait()

        def litter() -> None:
            fail(prepare, to_prepare)
            driver = self.open(based)
            if "litter" not in self.kinds(driver):
                driver.prepare("litter", "base")
            driver.close()
            fail(remove, to_remove)
            driver = self.open(based)
            if "litter" in self.kinds(driver):
                driver.remove("litter")
            driver.close()

        litter()
        for _ in self.killed(partial(self.run, based, lambda driver: driver.cleanup()), self.upkeep_stride):
            with self.cleaned(based) as driver:
                assert self.kinds(driver) == {}
            litter()

    def test_killed_in_open_and_close(self, based: str) -> None:
        def open_and_close(before_step: Callable[[int], None]) -> None:
            self.trace(lambda: self.open(based).close(), before_step)

        for _ in self.killed(open_and_close, self.upkeep_stride):
            with self.cleaned(based) as driver:
                assert self.kinds(driver) == {}

    def test_killed_in_the_first_open(self, root: str) -> None:
        """The root is a driver's, or is made one by the next; it is in nobody's way."""

        def open_first(before_step: Callable[[int], None]) -> None:
            self.trace(lambda: self.open(root).close(), before_step)

        for _ in self.killed(open_first, self.upkeep_stride):
            driver = self.open(root)
            self.layer(driver, "base", TREE)
            driver.close()
            with self.cleaned(root) as driver:
                assert self.kinds(driver) == {}
                driver.remove("base")
            assert self.orphans(root) == []
            shutil.rmtree(root)

    def test_killed_while_unpacking(self, based: str) -> None:
        """An archive is put on a prepared snapshot, which is then committed: as runtime.images.unpack does, which knows
        its keys again. What is named after it is the whole of it."""
        archive = _archive()

        def unpack(driver: Snapshotter) -> None:
            driver.prepare("unpack", "base")
            apply(driver, "unpack", io.BytesIO(archive))
            driver.commit("name", "unpack")

        def run(before_step: Callable[[int], None]) -> None:
            driver = self.open(based)
            before_each_step(lambda: unpack(driver), before_step, within=self.steps_within, each_way=False)
            driver.close()

        last: dict[str, Kind] = {}
        for _ in self.killed(run, self.unpacking_stride):
            with self.cleaned(based) as driver:
                last = self.kinds(driver)
                if "name" in last:
                    with self.looking(driver, "name") as path:
                        trees.assert_tree(path, APPLIED)
                for name in last:
                    driver.remove(name)
                assert set(last) <= {"name", "unpack"}
        assert last == {"name": Kind.COMMITTED}


def _archive() -> bytes:
    """What makes APPLIED of TREE."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in {".wh.f": "", "dir/g": "y" * 3000, "dir/h": "", "new/": None, "new/i": "i"}.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content.encode()))
    return out.getvalue()
