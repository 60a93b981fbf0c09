"""One owner of what a process has open: opened late and once, closed with it, and not kept open by who goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers import catalog
from drivers.errors import DriverError, Unavailable
from drivers.graph.snapshotter import GraphSnapshotter
from runtime.engine.containers.prune import prune
from runtime.engine.installation import Installation
from runtime.engine.paths import Paths
from runtime.engine.storage import leftovers
from runtime.engine.storage.drivers import Away, Storage
from tests.runtime.conftest import IMAGE, Runtime, wait_until

VFS = Storage("vfs", {})


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the drivers that are opened, in order."""
    seen: list[str] = []
    real = catalog.open_driver

    def open_driver(name: str, root: str, options: object = None) -> GraphSnapshotter:
        seen.append(name)
        return real(name, root, options)  # type: ignore[arg-type]

    monkeypatch.setattr(catalog, "open_driver", open_driver)
    return seen


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    if os.geteuid() != 0:
        pytest.skip("it needs root")
    return Paths.of(str(tmp_path / "root"), str(tmp_path / "state"))


@pytest.fixture
def own(paths: Paths) -> Iterator[Installation]:
    with Installation(paths, VFS) as opened:
        yield opened


def test_nothing_is_made_before_it_is_wanted(own: Installation) -> None:
    assert not os.path.exists(own.paths.root)
    assert list(own.drivers.used()) == []
    assert not os.path.exists(own.paths.root)


def test_each_part_is_one(own: Installation, opens: list[str]) -> None:
    assert own.images is own.images
    assert own.containers is own.containers
    assert own.network("none") is own.network("none")
    driver = own.drivers.chosen()
    assert own.drivers.get("vfs") is driver
    assert [found for _, found in own.drivers.used()] == [driver]
    assert opens == ["vfs"]


def test_threads_get_one_driver(own: Installation, opens: list[str]) -> None:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(own.drivers.get("vfs"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(map(id, found))) == 1
    assert opens == ["vfs"]


def test_what_is_closed_opens_again(own: Installation, opens: list[str]) -> None:
    former = own.drivers.get("vfs")
    own.close()
    own.close()
    assert own.drivers.get("vfs") is not former
    assert list(own.drivers.get("vfs").walk()) == []
    assert opens == ["vfs", "vfs"]


def test_options_of_now_hold_for_all_that_comes(paths: Paths, opens: list[str]) -> None:
    with Installation(paths, Storage("vfs", {"no.such": "option"})) as installation:
        assert installation.drivers.get("vfs") is installation.drivers.get("vfs")
        with pytest.raises(Unavailable, match=r"has no option 'no\.such'"):
            installation.drivers.chosen()
    assert opens == ["vfs", "vfs"]


def test_one_that_is_away_is_told_and_tried_again(
    own: Installation, opens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own.drivers.get("vfs")
    own.close()
    away: list[Away] = []
    with monkeypatch.context() as broken:
        broken.setattr(catalog, "open_driver", lambda *_: _raise(Unavailable("its disk is missing")))
        assert list(own.drivers.used(away=away)) == []
    assert away == [Away("vfs", "its disk is missing")]
    assert [name for name, _ in own.drivers.used()] == ["vfs"]


def _raise(error: DriverError) -> None:
    raise error


@pytest.fixture
def ended(runtime: Runtime) -> Iterator[Runtime]:
    for name in ("first", "second"):
        runtime("run", "--name", name, "--network=none", IMAGE, "true")
    yield runtime


def test_a_prune_opens_a_driver_once(ended: Runtime, opens: list[str]) -> None:
    with Installation(Paths.of(str(ended.root), str(ended.state))) as installation:
        assert len(prune(installation).removed) == 2
        assert leftovers.take_back(installation).failures == []
    assert opens.count("fuse-aufs") == 1


def _open_below(pid: int, directory: str) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{fd}")
        if target.startswith(f"{directory}/"):
            found.append(target)
    return found


def test_who_goes_on_holds_no_driver_open(each_driver: Runtime) -> None:
    """What a driver has set up goes with the last who has it open: neither a client nor a task is that for days."""
    runtime = each_driver
    words = ("--name=runs", "--network=none", IMAGE, "sh", "-c", "echo ready; while :; do sleep 0.1; done")
    with runtime.popen("run", *words) as client:
        assert client.stdout is not None
        client.stdout.readline()
        with Installation(Paths.of(str(runtime.root), str(runtime.state))) as installation:
            task = installation.containers.get("runs").state().task_pid
        with runtime.popen("exec", "runs", "sh", "-c", "echo ready; exec sleep 1000") as command:
            assert command.stdout is not None
            command.stdout.readline()
            held = [_open_below(pid, f"{runtime.root}/drivers") for pid in (client.pid, task, command.pid)]
            runtime("rm", "-f", "runs")  # what the two wait for, whatever was found
            command.communicate()
        client.communicate()
    assert held == [[], [], []]
    wait_until(lambda: not os.path.exists(f"/proc/{task}"), "the task has ended")
