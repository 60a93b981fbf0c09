"""A driver that this installation has used and that does not work now: its file is on another disk, its program was
removed. Whoever wants nothing of it is told in a line, and gets what he wants."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.api import Kind
from drivers.catalog import open_driver
from drivers.graph.store import Store
from drivers.zfs.driver import SCHEMA
from runtime.images.store import ImageStore
from runtime.images.unpack import chain_ids
from tests.runtime.conftest import IMAGE, Runtime

pytestmark = pytest.mark.needs("root", "overlay", "loop", "program:mkfs.btrfs")

AWAY = "runtime: storage driver btrfs does not work now, and what it has is left as it is: "


@pytest.fixture(scope="module")
def used(rootfs_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """An installation that has unpacked its image on overlay2 and on btrfs."""
    home = tmp_path_factory.mktemp("away")
    used = Runtime(home / "root", home / "state", "overlay2")
    used("import", rootfs_tar, IMAGE)
    used.run(IMAGE, "true")
    used.on("btrfs").call("run", "--rm", "--network=none", IMAGE, "true").check_returncode()
    return used


@pytest.fixture
def installation(used: Runtime) -> Iterator[Runtime]:
    """With a container on each driver, and an image that is unpacked nowhere."""
    empty = used.root.parent / "empty.tar"
    subprocess.run(["tar", "-C", str(used.root.parent), "-cf", str(empty), "--files-from=/dev/null"], check=True)
    used("import", empty, "other")
    used("run", "--name=here", "--network=none", IMAGE, "true")
    used.on("btrfs")("run", "--name=there", "--network=none", IMAGE, "true")
    yield used
    used.call("rm", "-f", "here", "there")
    used.call("rmi", "other")


@pytest.fixture
def btrfs_away(installation: Runtime) -> Iterator[Runtime]:
    with btrfs_is_away(installation):
        yield installation


@contextmanager
def btrfs_is_away(installation: Runtime) -> Iterator[None]:
    file = installation.root / "drivers/btrfs/btrfs.img"
    aside = installation.root.parent / "btrfs.img"
    os.rename(file, aside)
    try:
        yield
    finally:
        os.rename(aside, file)


def told(runtime: Runtime, *words: str) -> str:
    """What the verb prints, which succeeds and says that btrfs is away, once."""
    done = runtime.call(*words)
    assert done.returncode == 0, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(AWAY), line
    return done.stdout


def test_a_verb_that_wants_nothing_of_it(btrfs_away: Runtime) -> None:
    for words in (["ps", "-a"], ["images"], ["inspect", "there"], ["logs", "there"]):
        done = btrfs_away.call(*words)
        assert (done.returncode, done.stderr) == (0, ""), words
    assert "here" in btrfs_away("ps", "-a") and "there" in btrfs_away("ps", "-a")
    assert btrfs_away.call("info").returncode == 0
    assert btrfs_away.run(IMAGE, "echo", "works") == "works\n"
    assert "Containers" in told(btrfs_away, "system", "df")
    assert "Deleted: sha256:" in told(btrfs_away, "rmi", "other")
    told(btrfs_away, "image", "prune", "-f")
    assert btrfs_away("rm", "here") == "here\n"


def test_one_that_wants_something_of_it_says_what_is_wrong(btrfs_away: Runtime) -> None:
    """The container stays, and the others are removed."""
    for words in (["rm", "there"], ["diff", "there"], ["export", "there"], ["commit", "there", "made"]):
        said = btrfs_away.refused(*words, code=1)
        assert "btrfs.img is missing" in said, words
    done = btrfs_away.call("system", "prune", "-f")
    assert done.returncode == 1
    assert "Deleted Containers:" in done.stdout
    assert done.stderr.count(AWAY) == 1
    assert [line.rpartition(" ")[2] for line in btrfs_away("ps", "-a").splitlines()] == ["NAMES", "there"]


@pytest.fixture
def zfs_away(rootfs_tar: Path, tmp_path: Path) -> Iterator[Runtime]:
    """An installation whose image is unpacked in a pool that is not imported; there is another image."""
    runtime = Runtime(tmp_path / "root", tmp_path / "state", "overlay2")
    runtime("import", rootfs_tar, IMAGE)
    (tmp_path / "file").write_text("x")
    subprocess.run(["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "other.tar"), "file"], check=True)
    runtime("import", tmp_path / "other.tar", "other")
    [chain] = chain_ids(ImageStore(str(runtime.root / "images")).get(IMAGE).layers)
    zfs = runtime.root / "drivers" / "zfs"
    zfs.mkdir(0o700, parents=True)
    store = Store(str(zfs / "metadata.db"), "zfs", SCHEMA)
    with store.write() as transaction:
        transaction.execute("INSERT INTO place VALUES ('no-such-pool/fuse-aufs-0', 1)")
        number = transaction.create("making", "", Kind.ACTIVE, {})
        transaction.execute("INSERT INTO datasets VALUES (?, '0000000000000000', 'layer-0000000000000000')", (number,))
        transaction.execute(
            "UPDATE snapshots SET name = ?, kind = 'committed', inodes = 0, size = 0 WHERE id = ?", (chain, number)
        )
    store.close()
    yield runtime
    driver = open_driver("zfs", str(zfs))
    assert [info.name for info in driver.walk()] == [chain]
    driver.close()


def test_an_image_that_was_never_unpacked_there(zfs_away: Runtime) -> None:
    """What a driver has can be asked for even then."""
    done = zfs_away.call("rmi", "other")
    assert done.returncode == 0
    assert done.stderr.startswith("runtime: storage driver zfs does not work now")


def test_an_image_that_was_unpacked_there(zfs_away: Runtime) -> None:
    assert f"{IMAGE} is removed, but not all that was unpacked of it" in zfs_away.refused("rmi", IMAGE, code=1)


def test_a_damaged_container_of_another_driver(zfs_away: Runtime) -> None:
    """Its record does not say whose it is: all are asked."""
    zfs_away("run", "--name=damaged", "--network=none", IMAGE, "true")
    name = zfs_away("ps", "-aq", "--no-trunc").strip()
    (zfs_away.root / "containers" / name / "config.json").write_text("")
    done = zfs_away.call("rm", "-f", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name}\n", "")  # it can be asked even then


def test_a_damaged_container_of_it(installation: Runtime) -> None:
    """The record goes, the snapshot does not: who removes it hears that, and prune takes it when its driver is back."""
    name = installation("inspect", "-f", "{{.Id}}", "there").strip()
    (installation.root / "containers" / name / "config.json").write_text("")
    with btrfs_is_away(installation):
        assert told(installation, "rm", "-f", name, "here") == f"{name}\nhere\n"
    assert f"btrfs: {name}\n" in installation("system", "prune", "-f")
