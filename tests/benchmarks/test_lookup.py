"""`pytest tests/benchmarks --benchmark-enable`: finding names in a stack of layers, on each driver.

Without the option each operation runs once, as a test that it does what its name says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import lookup
from benchmarks.subjects import Driver, Stack, Tree


@pytest.fixture(scope="module")
def stack(driver: Driver) -> Iterator[Stack]:
    with driver.stack(lookup.layers(lookup.DEPTHS[-1])) as built:
        yield built


@pytest.fixture(params=lookup.DEPTHS)
def tree(stack: Stack, driver: Driver, request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Iterator[Tree]:
    benchmark.extra_info["driver"] = driver.name
    benchmark.extra_info["depth"] = request.param
    benchmark.group = f"{request.function.__name__}, {request.param} deep"
    with stack.writable(request.param) as mounted:
        yield mounted


def each_once(benchmark: BenchmarkFixture, operation: object, paths: list[str]) -> None:
    fresh = iter(paths)
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        operation, setup=lambda: ((next(fresh),), {}), rounds=len(paths)
    )


def test_hit(tree: Tree, benchmark: BenchmarkFixture) -> None:
    each_once(benchmark, os.stat, [os.path.join(tree.path, name) for name in lookup.hits()])


def test_miss(tree: Tree, benchmark: BenchmarkFixture) -> None:
    each_once(benchmark, lookup.absent, [os.path.join(tree.path, name) for name in lookup.misses()])


def test_walk(tree: Tree, benchmark: BenchmarkFixture) -> None:
    entries = benchmark.pedantic(  # type: ignore[no-untyped-call]
        lookup.walk, args=(os.path.join(tree.path, "walk"),), setup=tree.remount, rounds=5
    )
    assert entries == lookup.DIRECTORIES * (lookup.FILES + 1)


def test_every_layer_has_every_directory(tmp_path: Path) -> None:
    """A layer of a union has those directories in which something was written."""
    lookup.lowest(str(tmp_path))
    shutil.copytree(tmp_path, before := tmp_path / "before")
    for path in before.rglob("*"):
        os.utime(path, ns=(0, 0))
    lookup.higher(str(before))
    written = {path.parent for path in before.rglob("*") if path.is_file() and path.stat().st_mtime_ns}
    assert written == {path for path in before.rglob("*") if path.is_dir() and path != before / "walk"}
    assert len(list(before.rglob("*"))) == len(list(tmp_path.rglob("*"))) // 2


def test_a_name_that_is_there_is_not_a_miss(tmp_path: object) -> None:
    with pytest.raises(AssertionError, match="was found"):
        lookup.absent(str(tmp_path))
