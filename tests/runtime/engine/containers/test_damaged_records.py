"""Records on disk that cannot be understood: told by the file's name, kept by every verb, removed when asked."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.engine import state
from runtime.engine.containers.container import Container
from runtime.engine.containers.store import ContainerStore
from runtime.engine.state import State, Status
from runtime.errors import DamagedRecord
from tests.runtime.conftest import IMAGE, Runtime
from tests.runtime.containers import LOOP, found, start, unfinished
from tests.runtime.engine.containers.records import add

Damage = Callable[[Path], object]


def change(**changes: object) -> Damage:
    """A record with other values; None takes one away."""

    def damage(path: Path) -> None:
        record = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))

    return damage


def in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "no JSON": lambda path: path.write_bytes(os.urandom(100)),
    "deep": lambda path: path.write_text("[" * 100_000),
    "null": lambda path: path.write_text("null"),
    "list": lambda path: path.write_text("[]"),
    "nothing in it": lambda path: path.write_text("{}"),
    "a number for a text": change(image=5, status=5),
    "a text for a list": change(command="sh"),
    "a number in a list": change(command=[1]),
    "one too few": change(driver=None),
    "one too many": change(more=1),
    "a directory": in_its_place,
    "another's": change(id="f" * 64),
    "missing": os.unlink,
}
STATES = ["empty", "cut", "list", "one too many", "a directory"]


@pytest.fixture
def ended(runtime: Runtime) -> Iterator[Container]:
    runtime("run", "--name=work", "--network=none", IMAGE, "sh", "-c", "echo precious >/data; echo said")
    yield found(runtime, "work")
    if runtime.ids():
        runtime("rm", "-f", *runtime.ids())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_no_configuration_is_swept_by_nobody(store: ContainerStore, damage: Damage) -> None:
    container = add(store, "work")
    state.keep(container.directory, State(Status.EXITED))
    damage(Path(container.directory, "config.json"))
    store.sweep()
    assert list(store) == list(store.unsettled()) == []
    (damaged,) = store.damaged()
    assert (damaged.id, damaged.config.name) == (container.id, "work")
    assert damaged.state().status is Status.DEAD
    for reference in ("work", container.id):
        with pytest.raises(DamagedRecord, match=f"^{container.directory}/config.json .*runtime rm -f"):
            store.get(reference)
        assert store.get(reference, damaged=True) == damaged
    lock = damaged.lock()
    assert lock is not None
    store.drop(damaged)
    os.close(lock)
    assert list(store.damaged()) == []
    add(store, "work")


@pytest.mark.parametrize("damage", STATES)
def test_what_is_no_state_is_none_that_is_missing(store: ContainerStore, damage: str) -> None:
    container = add(store, "work")
    state.keep(container.directory, State(Status.EXITED))
    DAMAGES[damage](Path(container.directory, "state.json"))
    assert list(store) == [container]
    assert list(store.unsettled()) == []
    assert container.state().status is Status.DEAD
    os.mkdir(container.run_directory)
    state.save(container.run_directory, State(Status.RUNNING))
    assert container.state().status is Status.RUNNING


@pytest.mark.parametrize("damage", ["empty", "missing"])
def test_a_damaged_container_is_told_and_kept(runtime: Runtime, ended: Container, damage: str) -> None:
    path = Path(ended.directory, "config.json")
    original = path.read_bytes()
    DAMAGES[damage](path)
    for verb in (("container", "prune", "-f"), ("system", "prune", "-f"), ("image", "prune", "-f")):
        assert ended.id not in runtime(*verb)
    assert unfinished(runtime) == [ended.id]
    assert os.path.exists(ended.log)
    assert runtime.ids() == [ended.id]
    assert runtime("ps", "-q") == ""
    assert runtime.status("work").startswith("Dead (config.json ")
    assert "\n  dead: 1\n" in runtime("info")
    for reference in ("work", ended.id, ended.id[:6]):
        assert f"{path} " in runtime.refused("rm", reference, code=1)
    for words in (("logs",), ("stop",), ("export",), ("diff",), ("commit",)):
        assert f"runtime rm -f {ended.id[:12]}" in runtime.refused(*words, "work", code=1)
    assert f"{path} " in runtime.refused("exec", "work", "true")
    assert f"runtime rm -f {ended.id[:12]}" in runtime.call("inspect", "work").stderr
    assert "already in use" in runtime.refused("run", "--name=work", "--network=none", IMAGE, "true", code=125)
    path.write_bytes(original)
    assert runtime.status("work").startswith("Exited (0)")
    assert runtime("logs", "work") == "said\n"
    runtime("rm", "work")
    assert unfinished(runtime) == []


@pytest.mark.parametrize(("damage", "reference"), [("empty", "work"), ("missing", "id"), ("a directory", "work")])
def test_a_damaged_container_is_removed_with_its_snapshot(
    runtime: Runtime, ended: Container, damage: str, reference: str
) -> None:
    """Its driver is in no record: here another than that of the command."""
    DAMAGES[damage](Path(ended.directory, "config.json"))
    asked = ended.id[:12] if reference == "id" else reference
    assert runtime.on("overlay2")("rm", "-f", asked) == f"{asked}\n"
    assert runtime.ids() == []
    assert unfinished(runtime) == []
    assert sorted(os.listdir(runtime.root / "containers")) == [".lock", "names"]
    assert os.listdir(runtime.root / "containers/names") == []
    assert runtime.run("--name=work", IMAGE, "echo", "free") == "free\n"


def test_a_damaged_container_that_runs_is_killed_and_removed(runtime: Runtime) -> None:
    start(runtime, "work", LOOP)
    container = found(runtime, "work")
    pid = container.state().pid
    os.truncate(f"{container.directory}/config.json", 0)
    assert runtime.status("work").startswith("Dead")
    assert runtime("rm", "-f", "work") == "work\n"
    assert not os.path.exists(f"/proc/{pid}")
    assert runtime.ids() == []
    assert unfinished(runtime) == []
    assert os.listdir(runtime.state / "containers") == []


@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_a_damaged_state_leaves_the_container(runtime: Runtime, ended: Container, damage: str) -> None:
    path = Path(ended.directory, "state.json")
    DAMAGES[damage](path)
    assert ended.id not in runtime("system", "prune", "-f")
    assert runtime.status("work").startswith("Dead (state.json ")
    assert runtime.ids() == [ended.id]
    state = json.loads(runtime("inspect", "work"))[0]["State"]
    assert (state["Status"], state["Error"].split(" ")[0]) == ("dead", str(path))
    assert runtime("diff", "work") == "A /data\n"
    if damage == "cut":  # what comes of it when the record is given up
        path.unlink()
        assert runtime.status("work").startswith("Exited (255)")
    runtime("rm", "work")
    assert unfinished(runtime) == []


def test_what_was_killed_before_it_had_a_record_is_swept(runtime: Runtime) -> None:
    directory = runtime.root / "containers" / ("0" * 64)
    for names in ([], ["lock"], ["lock", "config.json.new"], ["lock", "removing"]):
        directory.mkdir()
        for name in names:
            (directory / name).touch()
        os.symlink(directory.name, runtime.root / "containers/names/half")
        assert runtime.ids() == []
        assert sorted(os.listdir(runtime.root / "containers")) == [".lock", "names"]
        assert os.listdir(runtime.root / "containers/names") == []


def test_a_snapshot_without_a_container_is_named_and_pruned(each_driver: Runtime) -> None:
    runtime = each_driver
    ids = []
    for name in ("lost", "kept"):
        runtime("run", f"--name={name}", "--network=none", IMAGE, "sh", "-c", "head -c 100000 /dev/zero >/data")
        ids.append(found(runtime, name).id)
    lost, kept = ids
    shutil.rmtree(runtime.root / "containers" / lost)
    assert re.search(r"^Lost Snapshots +1 +0 +\d", runtime("system", "df"), re.MULTILINE)
    start(runtime, "busy", LOOP)
    report = runtime("container" if runtime.driver == "vfs" else "system", "prune", "-f")
    assert f"Deleted Containers:\n{kept}\n\nDeleted Snapshots:\n{runtime.driver}: {lost}\n\nTotal" in report
    assert unfinished(runtime) == [found(runtime, "busy").id]
    assert "Lost Snapshots" not in runtime("system", "df")
    assert "Snapshots" not in runtime("container", "prune", "-f")
    runtime("rm", "-f", "busy")


def test_nothing_is_lost_to_a_prune_beside_a_run(runtime: Runtime) -> None:
    """A container has its record before it has its snapshot."""
    with runtime.popen("run", "--name=work", "--network=none", IMAGE, "true") as running:
        while running.poll() is None:
            assert "Snapshots" not in runtime("container", "prune", "-f")
        assert running.returncode == 0
    if runtime.ids():
        runtime("rm", "work")


def test_a_damaged_index_keeps_the_images(rootfs_tar: Path, tmp_path: Path) -> None:
    runtime = Runtime(tmp_path / "root", tmp_path / "state", "vfs")
    runtime("import", rootfs_tar, IMAGE)
    path = runtime.root / "images/index.json"
    original = path.read_bytes()
    blobs = sorted(os.listdir(runtime.root / "images/blobs/sha256"))
    for damage in ("empty", "missing"):
        DAMAGES[damage](path)
        for words in (
            ("images",), ("system", "prune", "-af"), ("image", "prune", "-af"), ("rmi", IMAGE), ("tag", IMAGE, "other"),
            ("run", "--rm", "--network=none", IMAGE, "true"), ("save", "-o", "/dev/null", IMAGE), ("system", "df"),
            ("import", rootfs_tar, "other"),
        ):  # fmt: skip
            assert f"{path} is " in runtime.refused(*words), damage
        assert sorted(os.listdir(runtime.root / "images/blobs/sha256")) == blobs
        path.write_bytes(original)
    assert runtime.run(IMAGE, "echo", "whole") == "whole\n"


def test_the_image_of_a_damaged_container_stays(runtime: Runtime, ended: Container) -> None:
    """Its record may be restored; and then it needs the image."""
    os.truncate(f"{ended.directory}/config.json", 0)
    assert "is used by a container" in runtime.refused("rmi", IMAGE, code=1)
    runtime("image", "prune", "-af")
    assert IMAGE in runtime("images")


def test_a_damaged_container_without_its_lock_is_removed(runtime: Runtime, ended: Container) -> None:
    os.truncate(f"{ended.directory}/config.json", 0)
    os.unlink(f"{ended.directory}/lock")
    runtime("rm", "-f", ended.id)
    assert runtime.ids() == []
    assert unfinished(runtime) == []
