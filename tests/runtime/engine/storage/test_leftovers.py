"""What killed commands leave in a driver is taken back by every verb that makes room, as docs/leftovers.md says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.api import Kind
from drivers.catalog import open_driver
from tests.capabilities import missing
from tests.runtime.conftest import IMAGE, Runtime, die_at

NEEDS = {"fuse-aufs": "fuse", "overlay2": "overlay", "btrfs": "loop"}


@pytest.fixture(params=["fuse-aufs", "overlay2", "vfs", "btrfs"])
def site(request: pytest.FixtureRequest, rootfs_tar: Path, tmp_path: Path, deadline: None) -> Iterator[Runtime]:
    """An installation of its own, with an image and two containers that have ended."""
    if os.geteuid() != 0:
        pytest.skip("it needs root")
    if (needs := NEEDS.get(request.param)) and (reason := missing(needs)):
        pytest.skip(reason)
    runtime = Runtime(tmp_path / "root", tmp_path / "state", request.param)
    runtime("import", "-c", 'CMD ["sh"]', rootfs_tar, IMAGE)
    for name in ("one", "two"):
        runtime("run", "--network", "none", "--name", name, IMAGE, "sh", "-c", "echo new >/new")
    yield runtime
    runtime("container", "prune", "-f")


def in_progress(site: Runtime) -> set[str]:
    """The keys of the snapshots that are no layers of images."""
    driver = open_driver(site.driver, str(site.root / "drivers" / site.driver))
    try:
        return {info.name for info in driver.walk() if info.kind is not Kind.COMMITTED}
    finally:
        driver.close()


def loops(site: Runtime) -> list[str]:
    found = []
    for device in os.listdir("/sys/block"):
        try:
            found.append(Path("/sys/block", device, "loop/backing_file").read_text().strip())
        except OSError:
            continue  # no loop device, or not attached
    return [path for path in found if path.startswith(str(site.root))]


VERBS: dict[str, Callable[[Runtime], object]] = {
    "rm": lambda site: site("rm", "two"),
    "rmi": lambda site: site("rmi", "spare"),
    "container prune": lambda site: site("container", "prune", "-f"),
    "image prune": lambda site: site("image", "prune", "-f"),
    "system prune": lambda site: site("system", "prune", "-f"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_taken_back(verb: str, site: Runtime, tmp_path: Path) -> None:
    """A layer half unpacked, and the view of a reader; on btrfs, with the last snapshot goes the device."""
    spare = tmp_path / "spare.tar"
    spare.write_bytes(bytes(10240))  # an archive without an entry
    site("import", spare, "spare")
    die_at(site, "runtime.images.layer.put_out", "run", "--network", "none", "spare", "true")
    die_at(site, "drivers.diff.layer.write", "commit", "one", "never")
    assert {name.partition("-")[0] for name in in_progress(site) - set(site.ids())} == {"diff", "unpack"}
    VERBS[verb](site)
    assert in_progress(site) == set(site.ids())
    if not site.ids():
        assert loops(site) == []


def test_what_a_killed_rmi_left_in_the_driver_is_taken_back(each_driver: Runtime) -> None:
    runtime = each_driver
    runtime("run", "--name=first", "--network=none", IMAGE, "sh", "-c", "echo new >/new")
    runtime("commit", "first", "layered")
    runtime("rm", "first")
    assert runtime.run("layered", "cat", "/new") == "new\n"
    directory = runtime.root / "drivers" / runtime.driver / "snapshots"
    before = len(os.listdir(directory))
    die_at(runtime, "drivers.graph.directories:DirectorySnapshotter._discard", "rmi", "layered")
    assert len(os.listdir(directory)) == before
    runtime("image", "prune", "-f")
    assert len(os.listdir(directory)) == before - 1
