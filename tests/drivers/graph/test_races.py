"""What another process may do between any two steps of prepare(), done at each of them in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.catalog import open_driver, probe
from drivers.errors import AlreadyExists, DriverError, InUse, NotFound, TimedOut
from drivers.graph.directories import DirectorySnapshotter
from tests import trees
from tests.steps import before_each_step

pytestmark = pytest.mark.needs("tmpfs")


@pytest.fixture(params=["overlay2", "vfs"])  # fuse-aufs makes a snapshot as overlay2 does
def two(request: pytest.FixtureRequest, memory: Path) -> Iterator[tuple[DirectorySnapshotter, DirectorySnapshotter]]:
    """Two drivers on one root, as two processes have. The other does not wait for a transaction, but says so."""
    found = probe(request.param, str(memory))
    if not found.works:
        pytest.skip(f"{request.param}: {found.reason}")
    mine, other = (open_driver(request.param, str(memory / "root")) for _ in range(2))
    assert isinstance(mine, DirectorySnapshotter) and isinstance(other, DirectorySnapshotter)
    with other._store.read() as transaction:
        transaction.execute("PRAGMA busy_timeout = 0")
    yield mine, other
    mine.close()
    other.close()


def layer(driver: DirectorySnapshotter, name: str) -> str:
    with driver._store.read() as transaction:
        return driver._layout.join(transaction.get(name).id, "fs")


def make_base(driver: DirectorySnapshotter, content: str = "first") -> None:
    driver.prepare("unpack")
    trees.build(layer(driver, "unpack"), {"d1": {"f": content}, "d2": {"g": content}, "h": content})
    driver.commit("base", "unpack")


def interfering(mine: DirectorySnapshotter, act: Callable[[], object]) -> Iterator[tuple[bool, DriverError | None]]:
    """Let `mine` prepare "key" on a new "base" with `act` done before one step, each in turn: whether that could be
    done, and what prepare() raised. If it raised nothing the snapshot is one of the "base" that is there now."""
    step = last = 1
    while step <= last:
        make_base(mine)
        acted = False

        @contextmanager
        def refused_is_fine() -> Iterator[None]:
            try:
                yield
            except (InUse, AlreadyExists, TimedOut):
                pass

        def interfere(number: int, at: int = step) -> None:
            nonlocal acted
            if number == at:
                with refused_is_fine():
                    act()
                    acted = True

        def prepare(into: list[Mount]) -> None:
            into += mine.prepare("key", "base")

        raised = None
        mounts: list[Mount] = []
        try:
            last = before_each_step(partial(prepare, mounts), interfere)
            assert mounts == mine.mounts("key")
            if mounts[0].type == "bind":
                trees.assert_same(trees.read(layer(mine, "base")), trees.read(mounts[0].source))
        except DriverError as error:
            raised, last = error, step + 1
        yield acted, raised
        mine.cleanup()
        mine.check_invariants()
        step += 1


@pytest.mark.parametrize("replaced", [False, True])
def test_the_parent_is_removed(two: tuple[DirectorySnapshotter, DirectorySnapshotter], replaced: bool) -> None:
    """prepare() says NotFound, or the other says InUse; a copy of half a parent is never taken for one, nor one of a
    parent that another has taken the name of."""
    mine, other = two

    def act() -> None:
        other.remove("base")
        if replaced:
            make_base(other, "second")

    outcomes = set()
    for removed, raised in interfering(mine, act):
        # Before prepare() has looked its parent up, the one with its name is as good.
        assert isinstance(raised, NotFound) if removed and not replaced else raised is None or removed
        outcomes.add(raised is None)
        if raised is None:
            mine.remove("key")
        if replaced or not removed:
            mine.remove("base")
        assert list(mine.walk()) == []
    assert outcomes == {True, False}


def test_the_key_is_taken(two: tuple[DirectorySnapshotter, DirectorySnapshotter]) -> None:
    mine, other = two
    outcomes = set()
    for taken, raised in interfering(mine, lambda: other.prepare("key", "base")):
        assert isinstance(raised, AlreadyExists) if taken else raised is None
        outcomes.add(taken)
        assert sorted(info.name for info in mine.walk()) == ["base", "key"]
        mine.remove("key")
        mine.remove("base")
    assert outcomes == {True, False}
