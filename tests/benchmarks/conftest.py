"""The drivers of this project as subjects, one directory each; a driver that cannot work here skips with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.subjects import Driver
from drivers.registry import NAMES, probe


@pytest.fixture(scope="module", params=NAMES)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    name: str = request.param
    work: Path = tmp_path_factory.mktemp(name)
    found = probe(name, str(work))
    if not found.works:
        pytest.skip(f"{name}: {found.reason}")
    return Driver(name, str(work))
