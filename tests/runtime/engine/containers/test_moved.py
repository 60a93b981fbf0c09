"""An installation that was moved works where it is: no record of it has a path of the place where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capabilities import missing
from tests.runtime.conftest import IMAGE, Runtime

LOOP = "echo ready; trap 'exit 0' TERM; while :; do sleep 0.1; done"


@pytest.fixture(params=["fuse-aufs", "overlay2", "vfs"])
def own(request: pytest.FixtureRequest, installation: Runtime, tmp_path: Path) -> Iterator[Runtime]:
    """An installation of the test's own with the image in it."""
    needs = {"fuse-aufs": "fuse", "overlay2": "overlay"}.get(request.param)
    if needs and (reason := missing(needs)):
        pytest.skip(reason)
    runtime = Runtime(tmp_path / "here/root", tmp_path / "here/state", request.param)
    shutil.copytree(installation.root / "images", runtime.root / "images", symlinks=True)
    yield runtime


def moved(runtime: Runtime, place: Path) -> Runtime:
    place.mkdir()
    shutil.move(runtime.root, place / "root")
    shutil.move(runtime.state, place / "state")
    return Runtime(place / "root", place / "state", runtime.driver)


def test_it_works_where_it_was_moved_to(own: Runtime, tmp_path: Path) -> None:
    own("run", "--name=wrote", IMAGE, "sh", "-c", "echo kept >/kept")
    own("commit", "wrote", "layered")
    own("run", "-d", "--name=stopped", "--network=none", IMAGE, "sh", "-c", LOOP)
    own("stop", "-t", "30", "stopped")
    listed = own("images", "-q"), own("ps", "-aq")

    there = moved(own, tmp_path / "there")
    assert (there("images", "-q"), there("ps", "-aq")) == listed
    assert there("logs", "stopped") == "ready\n"
    assert there("diff", "wrote") == "A /kept\n"
    assert there.run("layered", "cat", "/kept") == "kept\n"
    there("run", "-d", "--name=runs", "layered", "sh", "-c", LOOP)
    assert there("exec", "runs", "cat", "/kept") == "kept\n"
    there("rm", "-f", "runs", "wrote", "stopped")
    assert there.ids() == []
    there("rmi", "layered")
    assert os.listdir(there.state / "containers") == []
    assert not os.path.exists(own.root) and not os.path.exists(own.state)


@pytest.mark.parametrize("same_state", [False, True])
def test_a_copy_leaves_what_the_original_has_up_alone(own: Runtime, tmp_path: Path, *, same_state: bool) -> None:
    """A backup that somebody looks into: its containers have the ids of those that run, and are others."""
    own("run", "-d", "--name=runs", IMAGE, "sh", "-c", LOOP)
    try:
        shutil.copytree(own.root, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns("work"))
        copy = Runtime(tmp_path / "copy", own.state if same_state else tmp_path / "state", own.driver)
        assert copy.status("runs").startswith("Exited (255)")
        copy("ps", "-a")
        assert own.status("runs").startswith("Up ")
        assert own("exec", "runs", "echo", "lives") == "lives\n"
        copy("rm", "runs")
        assert own("exec", "runs", "echo", "lives") == "lives\n"
    finally:
        own("rm", "-f", "runs")


def test_no_record_has_the_place(own: Runtime, tmp_path: Path) -> None:
    own("run", "-d", "--name=runs", IMAGE, "sh", "-c", LOOP)
    own("run", "--name=ended", "--network=none", IMAGE, "true")
    try:
        records = [path for place in (own.root / "containers", own.state) for path in place.rglob("*.json")]
        assert {path.name for path in records} == {
            "config.json", "state.json", "status.json", "owner.json", "log.json",
        }  # fmt: skip
        # But for what oci/ says of a running container, whose bundle's path is part of it.
        records = [path for path in records if path.name != "state.json" or not path.is_relative_to(own.state)]
        assert [path for path in records if str(tmp_path) in path.read_text()] == []
    finally:
        own("rm", "-f", "runs", "ended")


def test_a_record_of_the_version_before_is_read(own: Runtime) -> None:
    """It has the directories of then, which nothing goes by any more."""
    own("run", "--name=old", "--network=none", IMAGE, "sh", "-c", "echo kept >/kept")
    (path,) = (own.root / "containers").glob("*/config.json")
    record = json.loads(path.read_text())
    gone = f"/nowhere/state/containers/{record['id']}/rootfs"
    spec = {**record["spec"], "root": {"path": gone, "readonly": False}}
    path.write_text(json.dumps({**record, "root": "/nowhere/root", "state": "/nowhere/state", "spec": spec}))
    assert own.status("old").startswith("Exited (0)")
    assert json.loads(own("inspect", "old"))[0]["Name"] == "/old"
    own("commit", "old", "layered")
    assert own.run("layered", "cat", "/kept") == "kept\n"
    own("rm", "old")
    own("rmi", "layered")
    assert own.ids() == [] and not os.path.exists("/nowhere")
