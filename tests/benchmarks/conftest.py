"""The drivers as subjects, and the unions, one directory each; what cannot work here skips with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import UNIONS
from benchmarks.subjects import Driver
from benchmarks.unions import Union
from drivers.catalog import NAMES, probe


@pytest.fixture(scope="module", params=NAMES)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    name: str = request.param
    work: Path = tmp_path_factory.mktemp(name)
    found = probe(name, str(work))
    if not found.works:
        pytest.skip(f"{name}: {found.reason}")
    return Driver(name, str(work))


@pytest.fixture(params=[name for name in UNIONS if ":" not in name])
def union(request: pytest.FixtureRequest, tmp_path: Path) -> Union:
    work = tmp_path / "union"
    work.mkdir()
    found = Union(request.param, str(work))
    if reason := found.why_not():
        pytest.skip(f"{found.name}: {reason}")
    return found
