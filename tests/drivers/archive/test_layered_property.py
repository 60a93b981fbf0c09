"""Random archives on random layers: what is extracted into a directory of differences, without a mount, is what the
same archive makes of a plain copy of the tree."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers.api import Snapshotter
from drivers.archive.errors import ArchiveError
from drivers.archive.reader import Entry, Kind, Reader
from drivers.diff import Change, apply, changes
from tests import trees
from tests.capabilities import missing
from tests.drivers.archive import tape
from tests.drivers.random_trees import DRIVERS, SCRIPTS, archive, opened, perform
from tests.mounting import mounted

NAMES = st.sampled_from([b"a", b"b", b"d", b"e"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
DIRECTORIES = st.one_of(st.just(b""), PATHS.map(lambda path: path + b"/"))
TARGETS = st.sampled_from([b"a", b"d", b"e", b"d/e", b"../d", b".", b"a/../e"])
PARTS = st.one_of(
    st.builds(tape.file, PATHS, st.sampled_from([b"", b"new"]), uid=st.sampled_from([0, 7])),
    st.builds(tape.file, PATHS, st.just(b"x" * 5000), mode=st.just(0o4755)),
    st.builds(tape.directory, PATHS, mode=st.sampled_from([0o755, 0o1777])),
    st.builds(tape.directory, PATHS),
    st.builds(tape.symlink, PATHS, TARGETS),
    st.builds(tape.hard_link, PATHS, PATHS),
    st.builds(tape.hard_link, PATHS, PATHS),
    st.builds(lambda path, name: tape.file(path + b".wh." + name), DIRECTORIES, NAMES),
    st.builds(lambda path, name: tape.file(path + b".wh." + name), DIRECTORIES, NAMES),
    st.builds(lambda path: tape.file(path + b".wh..wh..opq"), DIRECTORIES),
)
ARCHIVES = st.lists(PARTS, min_size=1, max_size=8)



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


@pytest.mark.needs("root", "tmpfs-xattr")
@pytest.mark.parametrize(("name", "examples"), [("overlay2", 60), ("fuse-aufs", 6)])
def test_an_archive_comes_to_the_same_without_a_mount(name: str, examples: int, memory: Path) -> None:
    if reason := missing(DRIVERS[name]):
        pytest.skip(reason)

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(SCRIPTS, min_size=1, max_size=2), ARCHIVES)
    def run(layers: list, parts: list[bytes]) -> None:  # type: ignore[type-arg]
        with copied(name, memory, [partial(perform, script=script) for script in layers]) as pair:
            assert_same_outcome(*pair, parts)

    run()
