"""Containers on the driver that starts them soonest, for tests of what is no driver's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.runtime.conftest import Runtime


@pytest.fixture
def vfs(installation: Runtime, deadline: None) -> Iterator[Runtime]:
    runtime = installation.on("vfs")
    yield runtime
    left = runtime.ids()
    if left:
        runtime("rm", "-f", *left)
    assert not left
