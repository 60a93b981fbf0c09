"""A removal that fails says so, and nobody goes on with it later but who is asked to, or has told that it will be."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.runtime.conftest import IMAGE, WAITING, Runtime, die_at
from tests.runtime.containers import LOOP, found, kill_and_wait, start, unfinished, writable


@contextmanager
def held(runtime: Runtime, name: str) -> Iterator[None]:
    """As if a union still wrote to the container's layer."""
    (layer,) = writable(runtime, found(runtime, name).id)
    holder = os.open(layer, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(holder)


@contextmanager
def away(runtime: Runtime) -> Iterator[Path]:
    """The driver does not work for a while."""
    store = runtime.root / "drivers" / runtime.driver / "metadata.db"
    os.rename(store, f"{store}.elsewhere")
    store.mkdir()
    try:
        yield store
    finally:
        store.rmdir()
        os.rename(f"{store}.elsewhere", store)


def others(runtime: Runtime) -> None:
    """Commands about something else."""
    runtime("ps")
    runtime("images")
    runtime("image", "prune", "-f")
    assert runtime.run(IMAGE, "echo", "works") == "works\n"


@pytest.mark.parametrize("force", [False, True])
def test_rm_of_what_somebody_uses(runtime: Runtime, force: bool) -> None:
    runtime.call("run", "--name=work", "--network=none", IMAGE, "sh", "-c", "echo precious >/data; exit 3")
    with held(runtime, "work"):
        assert "still writes" in runtime.refused("rm", *(["-f"] if force else []), "work", code=1)
        assert runtime.status("work").startswith("Exited (3)")
    others(runtime)
    assert runtime.status("work").startswith("Exited (3)")
    assert runtime("diff", "work") == "A /data\n"
    assert runtime("rm", "work") == "work\n"
    assert unfinished(runtime) == []


@pytest.mark.parametrize("running", [False, True])
def test_rm_of_a_container_whose_driver_is_away(runtime: Runtime, running: bool) -> None:
    if running:
        start(runtime, "work", LOOP)
    else:
        runtime("run", "--name=work", "--network=none", IMAGE, "true")
    with away(runtime) as store:
        assert str(store) in runtime.refused("rm", "-f", "work", code=1)
        assert runtime.status("work").startswith("Exited")
        assert runtime.on("vfs").run(IMAGE, "echo", "works") == "works\n"
        assert runtime.status("work").startswith("Exited")
    others(runtime)
    assert unfinished(runtime) == [found(runtime, "work").id]
    assert runtime("rm", "work") == "work\n"


def test_prune_tells_what_it_removed_and_what_it_could_not(runtime: Runtime) -> None:
    for name in ("first", "kept", "last"):
        runtime("run", f"--name={name}", "--network=none", IMAGE, "true")
    first, kept, last = (found(runtime, name).id for name in ("first", "kept", "last"))
    with held(runtime, "kept"):
        done = runtime.call("container", "prune", "-f")
    assert done.returncode == 1
    assert done.stdout.startswith(f"Deleted Containers:\n{last}\n{first}\n\nTotal reclaimed space: ")
    assert "still writes" in done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith(WAITING)]) == 1
    others(runtime)
    assert runtime.ids() == [kept]
    runtime("rm", "kept")


def test_one_that_cannot_remove_itself_says_who_will(runtime: Runtime, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    script = "echo ready; read line </told/go"
    words = ("run", "--rm", "--network=none", "--name=work", f"-v{tmp_path}:/told", IMAGE, "sh", "-c", script)
    with runtime.popen(*words) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        with away(runtime):
            (tmp_path / "go").write_text("\n")
            _, err = client.communicate()
            assert client.returncode == 0
            assert b"runtime: work is not removed yet, which the next command tries again: " in err
            assert err.count(b"\n") == 1
            assert len(runtime.ids()) == 1
    assert runtime.ids() == []
    assert unfinished(runtime) == []


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    if subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
        pytest.skip("the file system has no immutable files")
    try:
        yield
    finally:
        snapshots_directory = next(parent for parent in path.parents if parent.name == "snapshots")
        for found_again in snapshots_directory.rglob(path.name):  # in a directory with another name
            subprocess.run(["chattr", "-i", found_again], check=True)


@pytest.mark.needs("program:chattr")
@pytest.mark.parametrize("words", [("container", "prune", "-f"), ("rm", "work")])
def test_files_that_cannot_be_deleted_do_not_keep_the_container(runtime: Runtime, words: tuple[str, ...]) -> None:
    """There is nothing left to be used, so it is gone; what its files take is told, and taken back later."""
    runtime("run", "--name=work", "--network=none", IMAGE, "sh", "-c", "echo precious >/precious")
    (layer,) = writable(runtime, found(runtime, "work").id)
    place = runtime.root / "drivers" / runtime.driver / "snapshots"
    with immutable(Path(layer, "precious")):
        done = runtime.call(*words)
        assert done.returncode == 1
        assert "work is removed, but not all of what it has written: " in done.stderr
        assert runtime.ids() == []
        assert list(place.rglob("precious"))
    runtime("system", "prune", "-f")
    assert not list(place.rglob("precious"))


@pytest.mark.needs("program:chattr")
def test_rmi_tells_what_is_removed_and_what_is_not(runtime: Runtime) -> None:
    runtime("run", "--name=work", "--network=none", IMAGE, "sh", "-c", "echo new >/precious")
    runtime("commit", "work", "layered")
    runtime("rm", "work")
    assert runtime.run("layered", "cat", "/precious") == "new\n"
    place = runtime.root / "drivers" / runtime.driver / "snapshots"
    (path,) = place.rglob("precious")
    with immutable(path):
        assert "layered is removed, but not all that was unpacked of it: " in runtime.refused("rmi", "layered", code=1)
        assert "layered" not in runtime("images")
    runtime("image", "prune", "-f")
    assert not list(place.rglob("precious"))


def test_one_that_cannot_be_removed_leaves_the_others_alone(runtime: Runtime) -> None:
    runtime("run", "--name=held", "--network=none", IMAGE, "true")
    container = found(runtime, "held")
    die_at(runtime, "drivers.graph.snapshotter:GraphSnapshotter.remove", "rm", "held")
    (layer,) = writable(runtime, container.id)
    holder = os.open(layer, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        start(runtime, "lost", LOOP)
        kill_and_wait(found(runtime, "lost").state().task_pid)
        assert runtime.status("held") == "Removing"
        assert runtime.status("lost").startswith("Exited (137)")
        assert runtime.run(IMAGE, "echo", "works") == "works\n"
        assert "still writes" in runtime.refused("rm", "held", code=1)
        assert runtime.status("held").startswith("Exited (0)")  # nobody removes it later: it was told to have failed
    finally:
        os.close(holder)
    assert runtime("rm", "held", "lost") == "held\nlost\n"
