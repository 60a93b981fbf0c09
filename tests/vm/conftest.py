"""Guests whose tests were collected are started before the first test, wherever that is."""

from __future__ import annotations

import pytest

from tests.capabilities import missing
from tests.vm.guests import Beside

guests = pytest.StashKey[Beside]()
NEEDS = ("root", *(f"program:{name}" for name in ("qemu-system-x86_64", "cpio", "depmod")))


def pytest_collection_finish(session: pytest.Session) -> None:
    names = [
        str(item.callspec.params["name"]) for item in session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_in_a_guest"
    ]  # fmt: skip
    if names and not session.config.option.collectonly and not any(missing(need) for need in NEEDS):
        session.config.stash[guests] = Beside(names)


def pytest_unconfigure(config: pytest.Config) -> None:
    if beside := config.stash.get(guests, None):
        beside.close()
