"""Two drivers with the same layers, one of differences and one of plain trees: what an archive comes to on each."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from drivers.api import Snapshotter
from drivers.archive.errors import ArchiveError
from drivers.archive.reader import Entry, Kind, Reader
from drivers.diff import Change, apply, changes
from tests import trees
from tests.drivers.archive import tape
from tests.drivers.random_trees import archive, opened
from tests.mounting import mounted


def outcome(
    driver: Snapshotter, key: str, parts: Sequence[bytes]
) -> tuple[str, dict[str, trees.Found], list[Change], list[Entry]]:
    """What is said if it is refused; or the tree, what is told of it, and what is in its archive. The times of
    directories are left out: an archive sets some, and the others are those of the test."""
    try:
        apply(driver, key, tape.stream(*parts))
    except ArchiveError as error:
        return str(error), {}, [], []
    with mounted(driver.mounts(key)) as path:
        found = {name: replace(entry, nlink=None) for name, entry in trees.read(path).items()}
    members = list(Reader(io.BytesIO(archive(driver, key))))
    for entry in members:
        entry.mtime_ns *= entry.kind is not Kind.DIRECTORY
    return "", found, changes(driver, key), members


@contextlib.contextmanager
def copied(
    name: str, memory: Path, layers: Sequence[Callable[[str], object]]
) -> Iterator[tuple[Snapshotter, Snapshotter]]:
    """A driver of differences and one of plain trees, each with the active snapshot "unpacked" on the same layers: what
    the first one's mounts were changed by, and the archives of that."""
    with opened(name, memory / "layers") as one, opened("vfs", memory / "plain") as plain:
        parent = ""
        for number, change in enumerate(layers):
            with mounted(one.prepare("writing", parent)) as path:
                change(path)
            plain.prepare("writing", parent)
            apply(plain, "writing", io.BytesIO(archive(one, "writing")))
            for driver in (one, plain):
                driver.commit(f"layer-{number}", "writing")
            parent = f"layer-{number}"
        for driver in (one, plain):
            driver.prepare("unpacked", parent)
        yield one, plain


def assert_same_outcome(one: Snapshotter, plain: Snapshotter, parts: Sequence[bytes]) -> None:
    found, expected = (outcome(driver, "unpacked", parts) for driver in (one, plain))
    assert found[0] == expected[0]
    trees.assert_same(expected[1], found[1])
    for mine, theirs in ((found[2], expected[2]), (found[3], expected[3])):
        assert [one for one in mine if one not in theirs] == [one for one in theirs if one not in mine] == []
    assert found[2:] == expected[2:]
