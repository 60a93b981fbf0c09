"""Random archives on random layers: what is extracted into a directory of differences, without a mount, is what the
same archive makes of a plain copy of the tree."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.capabilities import missing
from tests.drivers.archive import tape
from tests.drivers.archive.pairs import assert_same_outcome, copied
from tests.drivers.random_trees import DRIVERS, SCRIPTS, perform

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
