"""`pytest tests/benchmarks --benchmark-enable`: the first change to a lower file, on each driver.

Without the option each operation runs once, as a test that it does what its name says.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import copyup
from benchmarks.subjects import Driver, Stack


@pytest.fixture(scope="module")
def stack(driver: Driver) -> Iterator[Stack]:
    with driver.stack([copyup.Fill(tuple(copyup.SIZES))]) as built:
        yield built


@pytest.mark.parametrize("size", copyup.SIZES)
@pytest.mark.parametrize("change", copyup.CHANGES)
def test_first_change(stack: Stack, driver: Driver, change: str, size: str, benchmark: BenchmarkFixture) -> None:
    benchmark.group = f"{change}, {size}"
    benchmark.extra_info["driver"] = driver.name
    with stack.writable(1) as tree:
        paths = [os.path.join(tree.path, name) for name in copyup.names(change, size)]
        before = [os.stat(path) for path in paths]
        fresh = iter(paths)
        benchmark.pedantic(  # type: ignore[no-untyped-call]
            copyup.CHANGES[change], setup=lambda: ((next(fresh),), {}), rounds=len(paths)
        )
        for path, was in zip(paths[: len(paths) - len(list(fresh))], before, strict=False):
            now = os.stat(path)
            assert (now.st_size, now.st_ino) == (was.st_size, was.st_ino)
            if change == "first chmod":
                assert stat.S_IMODE(now.st_mode) == 0o600
            else:
                assert now.st_mtime_ns > was.st_mtime_ns
                with open(path, "rb") as file:
                    assert file.read(1) == b"x"
