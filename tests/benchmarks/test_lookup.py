"""`pytest tests/benchmarks --benchmark-enable`: finding names in a stack of layers, on each driver.

Without the option each operation runs once, as a test that it does what its name says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

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
    benchmark.pedantic(operation, setup=lambda: ((next(fresh),), {}), rounds=len(paths))


def test_hit(tree: Tree, benchmark: BenchmarkFixture) -> None:
    each_once(benchmark, os.stat, [os.path.join(tree.path, name) for name in lookup.hits()])


def test_miss(tree: Tree, benchmark: BenchmarkFixture) -> None:
    each_once(benchmark, lookup.absent, [os.path.join(tree.path, name) for name in lookup.misses()])


def test_walk(tree: Tree, benchmark: BenchmarkFixture) -> None:
    entries = benchmark.pedantic(lookup.walk, args=(os.path.join(tree.path, "walk"),), setup=tree.remount, rounds=5)
    assert entries == lookup.DIRECTORIES * (lookup.FILES + 1)


def test_a_name_that_is_there_is_not_a_miss(tmp_path: object) -> None:
    with pytest.raises(AssertionError, match="was found"):
        lookup.absent(str(tmp_path))
