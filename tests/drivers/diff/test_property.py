"""Random trees, changed at random: the archive of the changes makes the same tree of the same parent on any driver."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings

from drivers.api import Snapshotter
from drivers.diff import apply, changes, diff_size
from tests import trees
from tests.capabilities import missing
from tests.contracts.snapshotter.differ import by_comparison
from tests.drivers.random_trees import DRIVERS, SCRIPTS, Script, archive, opened, perform
from tests.mounting import mounted


def seen(driver: Snapshotter, key: str) -> dict[str, trees.Found]:
    """Link counts differ where a driver breaks lower hard links; which names are one file is compared."""
    with mounted(driver.mounts(key)) as path:
        return {name: replace(found, nlink=None) for name, found in trees.read(path).items()}


def check(source: str, target: str, memory: Path, base: Script, change: Script) -> None:
    with opened(source, memory / "source") as one, opened(target, memory / "target") as other:
        with mounted(one.prepare("writing")) as path:
            perform(path, base)
        one.commit("base", "writing")
        other.prepare("writing")
        apply(other, "writing", io.BytesIO(archive(one, "base")))
        assert archive(other, "writing") == archive(one, "base")
        other.commit("base", "writing")
        with mounted(one.prepare("changed", "base")) as path:
            perform(path, change)
        data = archive(one, "changed")
        assert by_comparison(one, "changed") == data
        other.prepare("applied", "base")
        assert apply(other, "applied", io.BytesIO(data)).size == diff_size(one, "changed")
        trees.assert_same(seen(one, "changed"), seen(other, "applied"), f"{base} {change}")
        assert changes(other, "applied") == changes(one, "changed")
        assert archive(other, "applied") == data


@pytest.mark.needs("root", "tmpfs-xattr")
@pytest.mark.parametrize(
    ("source", "target", "examples"),
    [("overlay2", "vfs", 60), ("vfs", "overlay2", 60), ("fuse-aufs", "vfs", 12), ("overlay2", "fuse-aufs", 12)],
)
def test_a_changed_tree_comes_to_the_same_elsewhere(source: str, target: str, examples: int, memory: Path) -> None:
    for name in (source, target):
        if reason := missing(DRIVERS[name]):
            pytest.skip(reason)

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(SCRIPTS, SCRIPTS)
    @example([("write", b"a", b"x"), ("link", b"a", b"b")], [("write", b"b", b"y"), ("link", b"a", b"d")])
    @example([("mkdir", b"d", None), ("acl", b"d", "default")], [("write", b"d/a", b"x"), ("mkdir", b"d/e", None)])
    def run(base: Script, change: Script) -> None:
        check(source, target, memory, base, change)

    run()
