"""A store of containers, without a driver and without an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.engine.containers.store import ContainerStore
from runtime.engine.paths import Paths


@pytest.fixture
def store(tmp_path: Path) -> ContainerStore:
    return ContainerStore(Paths.of(str(tmp_path / "root"), str(tmp_path / "state")))
