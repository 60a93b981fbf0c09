"""Directories: new-X, then a number, then rm-X; and what of them is garbage."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.graph.layout import Layout
from drivers.mounts.attached import mount_all, unmount_all
from tests import trees
from tests.children import in_child


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    layout = Layout(str(tmp_path / "root"))
    yield layout
    layout.close()


def publish(layout: Layout, number: int) -> None:
    with layout.staging() as staging:
        trees.build(staging.path, {"fs": {"f": str(number)}})
        staging.publish(number)


def test_the_life_of_a_directory(layout: Layout) -> None:
    publish(layout, 7)
    trees.assert_tree(layout.path, {"7": {"fs": {"f": "7"}}})
    layout.check_invariants({7})
    name = layout.retire(7)
    assert name is not None and os.listdir(layout.path) == [name]
    layout.discard(name)
    layout.check_invariants(())


def test_a_failure_before_publication_leaves_nothing(layout: Layout) -> None:
    with pytest.raises(ZeroDivisionError), layout.staging() as staging:
        trees.build(staging.path, {"fs": {"f": ""}})
        _ = 1 // 0
    layout.check_invariants(())


def test_a_failure_after_publication_is_left_to_the_rows(layout: Layout) -> None:
    """Whether the transaction reached the disk is not known to the process that failed in it."""
    with pytest.raises(ZeroDivisionError), layout.staging() as staging:
        staging.publish(3)
        _ = 1 // 0
    layout.check_invariants({3})
    assert layout.retire_all_but({4}, 4) == []
    layout.sweep()
    layout.check_invariants(())


def test_a_number_that_a_crash_has_left_is_taken_over(layout: Layout) -> None:
    publish(layout, 5)
    with layout.staging() as staging:
        trees.build(staging.path, {"fs": {"f": "mine"}})
        staging.publish(5)
    layout.sweep()
    trees.assert_tree(layout.path, {"5": {"fs": {"f": "mine"}}})


def test_everything_is_closed_to_others(tmp_path: Path) -> None:
    """Also under a wide umask, and where the directory was made by somebody less careful."""
    (tmp_path / "root").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        layout = Layout(str(tmp_path / "root"))
        publish(layout, 1)
    finally:
        os.umask(before)
    layout.check_invariants({1})
    assert stat.S_IMODE(os.stat(layout.join(1)).st_mode) == 0o700
    layout.close()
    layout.close()


def test_sweep_knows_the_living_from_the_dead(layout: Layout) -> None:
    """A new- directory is garbage when its owner was killed, and not while he lives."""
    reader, writer = os.pipe()

    def own() -> None:
        mine = Layout(layout.root)
        with mine.staging() as staging:
            os.write(writer, staging.name.encode())
            signal.pause()

    child = in_child(own)
    try:
        name = os.read(reader, 100).decode()
        layout.sweep()
        assert os.listdir(layout.path) == [name]
    finally:
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        os.close(reader)
        os.close(writer)
    layout.sweep()
    assert os.listdir(layout.path) == []


def test_staging_beside_sweepers(layout: Layout) -> None:
    """Between its mkdir and its flock a new directory looks like garbage; staging() then takes another."""

    def stage() -> None:
        mine = Layout(layout.root)
        for _ in range(300):
            with mine.staging() as staging:
                os.mkdir(os.path.join(staging.path, "fs"))

    children = [in_child(stage) for _ in range(2)]
    while any(child.is_running() for child in children):
        layout.sweep()
    assert [child.wait() for child in children] == [0, 0]
    layout.check_invariants(())


def test_two_delete_the_same(layout: Layout) -> None:
    """Whoever holds the lock deletes; the other has nothing to do, and says nothing."""
    for number in range(20):
        with layout.staging() as staging:
            trees.build(staging.path, {f"d{n}": {"f": "", "e": {"g": ""}} for n in range(20)})
            staging.publish(number)
        layout.retire(number)
    children = [in_child(lambda: Layout(layout.root).sweep()) for _ in range(3)]
    layout.sweep()
    assert [child.wait() for child in children] == [0] * 3
    layout.sweep()
    layout.check_invariants(())


def test_retiring_what_is_not_there(layout: Layout) -> None:
    assert layout.retire(12) is None
    layout.discard("rm-never")


def test_what_cannot_be_deleted_does_not_keep_the_rest(layout: Layout, tmp_path: Path) -> None:
    """A file system mounted in a layer, say: it is reported and left, everything else goes."""
    stuck = layout.join("rm-stuck")
    trees.build(layout.path, {"rm-a": {"f": ""}, "rm-stuck": {"inside": {}}, "rm-z": {"f": ""}})
    (tmp_path / "elsewhere").mkdir()
    mount_all([Mount("bind", str(tmp_path / "elsewhere"))], f"{stuck}/inside")
    try:
        with pytest.raises(OSError, match="cross-device"):
            layout.sweep()
        assert os.listdir(layout.path) == ["rm-stuck"]
    finally:
        unmount_all(f"{stuck}/inside")
    layout.sweep()
    layout.check_invariants(())
