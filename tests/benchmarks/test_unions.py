"""That each union of two directories is one: otherwise their figures would not compare."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.unions import Mounted, Union, lower_directory


def fill(directory: str) -> None:
    for name in ("kept", "changed", "gone"):
        with open(os.path.join(directory, name), "w") as file:
            file.write(name)


def read(*path: str) -> str:
    with open(os.path.join(*path)) as file:
        return file.read()


def test_a_union(union: Union, tmp_path: Path) -> None:
    with lower_directory(str(tmp_path), fill) as lower:
        with union.over(lower) as tree:
            change(tree, union)
            tree.remount()
            check(tree, union)
        assert sorted(os.listdir(lower)) == ["changed", "gone", "kept"]
        assert read(lower, "changed") == "changed"
        with union.over(lower) as tree:  # of which nothing was left
            assert sorted(os.listdir(tree.path)) == ["changed", "gone", "kept"]
    assert os.listdir(union.work) == []


def change(tree: Mounted, union: Union) -> None:
    assert sorted(os.listdir(tree.path)) == ["changed", "gone", "kept"]
    with open(f"{tree.path}/new", "w") as file:
        file.write("new")
    if union.copies_up:
        with open(f"{tree.path}/changed", "a") as file:
            file.write(" here")
        os.unlink(f"{tree.path}/gone")


def check(tree: Mounted, union: Union) -> None:
    assert read(tree.path, "new") == "new" and read(tree.path, "kept") == "kept"
    if union.copies_up:
        assert read(tree.path, "changed") == "changed here"
        assert not os.path.exists(f"{tree.path}/gone")


def test_the_server_is_the_process_that_serves(union: Union, tmp_path: Path) -> None:
    with lower_directory(str(tmp_path), fill) as lower, union.over(lower) as tree:
        if not union.has_server:
            with pytest.raises(OSError, match="no process serves"):
                tree.server_pid()
            return
        pid = tree.server_pid()
        descriptors = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert "/dev/fuse" in descriptors
        assert lower in read(f"/proc/{pid}/cmdline")
        tree.remount()
        assert tree.server_pid() != pid


@pytest.mark.needs("fuse")
@pytest.mark.parametrize(("transport", "loads_pyfuse3"), [("pyfuse3", True), ("direct", False)])
def test_a_transport_can_be_chosen(tmp_path: Path, transport: str, loads_pyfuse3: bool) -> None:
    union = Union(f"fuse-aufs:{transport}", str(tmp_path))
    if reason := union.why_not():
        pytest.skip(reason)
    with lower_directory(str(tmp_path), fill) as lower, union.over(lower) as tree:
        assert ("pyfuse3" in read(f"/proc/{tree.server_pid()}/maps")) is loads_pyfuse3


@pytest.mark.needs("fuse")
def test_a_union_that_cannot_be_mounted_says_why(tmp_path: Path) -> None:
    assert "transport" in str(Union("fuse-aufs:none", str(tmp_path)).why_not())
    assert os.listdir(tmp_path) == []
