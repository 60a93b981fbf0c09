"""Fixtures of the driver tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.api import Mount
from tests.mounting import mounted


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on a file system of its own, in memory: for tests in which processes die and not disks, so that
    a thousand of them do not wait for one."""
    with mounted([Mount("tmpfs", "tmpfs", ("size=64m",))]) as path:
        yield Path(path)
