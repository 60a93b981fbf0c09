from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.api import Kind, Snapshotter
from drivers.archive.extract import extract
from drivers.catalog import NAMES, open_driver, probe
from runtime.errors import ImageError, NoSuchImage
from runtime.images import layer as layers
from runtime.images.document import LAYER, Descriptor
from runtime.images.image import Image
from runtime.images.rootfs import import_rootfs
from runtime.images.store import ImageStore
from runtime.images.unpack import chain_ids, forget_snapshots, unpack
from tests import steps
from tests.children import Child, in_child
from tests.drivers.archive import tape
from tests.mounting import mounted
from tests.runtime.conftest import wait_until
from tests.runtime.images.conftest import IMAGES, ROOTFS
from tests.trees import Tree, assert_same, assert_tree, read
from unionfs.linux import mounts

Archive = Callable[..., str]


@pytest.fixture(params=NAMES)
def driver_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a driver keeps its snapshots; the last part is its name."""
    found = probe(request.param, str(tmp_path))
    if not found.works:
        pytest.skip(f"{request.param}: {found.reason}")
    return str(tmp_path / "root" / "drivers" / request.param)


@pytest.fixture
def driver(driver_root: str) -> Iterator[Snapshotter]:
    opened = reopen(driver_root)
    yield opened
    opened.close()


def reopen(root: str) -> Snapshotter:
    return open_driver(os.path.basename(root), root)


def layered(store: ImageStore, archive: Archive) -> Image:
    """An image of three layers: a root file system, whiteouts in it, files over that."""
    lower: Tree = {"etc": {"a": "a", "gone": {"x": "x"}, "same": "s"}, "opaque": {"old": "o"}, "bin": {"sh": "#!"}}
    middle: Tree = {"etc": {".wh.gone": "", "a": "new a"}, "opaque": {".wh..wh..opq": "", "new": "n"}}
    upper: Tree = {"etc": {"gone": {"y": "back"}}, ".wh.bin": ""}
    trees = {"lower": lower, "middle": middle, "upper": upper}
    images = [import_rootfs(store, archive(tree, f"{name}.tar"), name) for name, tree in trees.items()]
    return dataclasses.replace(
        images[-1],
        layers=tuple(image.layers[0] for image in images),
        blobs=tuple(image.blobs[0] for image in images),
    )


def lowest(image: Image, count: int) -> Image:
    """An image of the `count` lowest layers."""
    return dataclasses.replace(image, layers=image.layers[:count], blobs=image.blobs[:count])


LAYERED: Tree = {"etc": {"a": "new a", "gone": {"y": "back"}, "same": "s"}, "opaque": {"new": "n"}}


def content(driver: Snapshotter, name: str) -> dict[str, object]:
    mounts_ = driver.view("look", name)
    try:
        with mounted(mounts_) as path:
            return dict(read(path))
    finally:
        driver.remove("look")


def assert_content(driver: Snapshotter, name: str, tree: Tree) -> None:
    mounts_ = driver.view("look", name)
    try:
        with mounted(mounts_) as path:
            assert_tree(path, tree)
    finally:
        driver.remove("look")


def names(driver: Snapshotter) -> list[str]:
    return [info.name for info in driver.walk()]


def mounted_below(path: str) -> list[str]:
    return [point.target for point in mounts.mountinfo() if point.target.startswith(path)]


def test_chain_ids() -> None:
    """The example of image-spec config.md: the first is the diff id, each other the digest of two."""
    a, b = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    assert chain_ids([a]) == [a]
    chained = subprocess.run(["sha256sum"], input=f"{a} {b}".encode(), stdout=subprocess.PIPE, check=True).stdout
    assert chain_ids([a, b]) == [a, f"sha256:{chained[:64].decode()}"]


def test_a_root_file_system(store: ImageStore, archive: Archive, driver: Snapshotter, tmp_path: Path) -> None:
    """The tree is what GNU tar makes of the archive."""
    path = archive()
    image = import_rootfs(store, path, "a")
    name = unpack(store, image, driver)
    assert name == image.layers[0]
    assert driver.stat(name).kind is Kind.COMMITTED
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run(["tar", "-C", theirs, "-p", "--xattrs", "-xf", path], check=True)
    assert_same(read(str(theirs)), content(driver, name))  # type: ignore[arg-type]
    assert not os.path.exists(f"{store.root}/unpack")


def test_unpacking_again_does_nothing(store: ImageStore, archive: Archive, driver: Snapshotter) -> None:
    image = import_rootfs(store, archive(), "a")
    name = unpack(store, image, driver)
    before = list(driver.walk())
    with store.locked("unpack.lock"):  # it does not even wait for who unpacks
        assert unpack(store, image, driver) == name
    assert list(driver.walk()) == before


def test_layers_and_their_whiteouts(store: ImageStore, archive: Archive, driver: Snapshotter) -> None:
    image = layered(store, archive)
    name = unpack(store, image, driver)
    assert names(driver) == chain_ids(image.layers)
    assert_content(driver, name, LAYERED)
    assert_content(driver, image.layers[0], {"etc": {"a": "a", "gone": {"x": "x"}, "same": "s"}, "opaque": {"old": "o"},
                                             "bin": {"sh": "#!"}})  # fmt: skip


def test_layers_in_common_are_unpacked_once(store: ImageStore, archive: Archive, driver: Snapshotter) -> None:
    image = layered(store, archive)
    lower = lowest(image, 2)
    unpack(store, lower, driver)
    created = {info.name: info.created for info in driver.walk()}
    unpack(store, image, driver)
    assert len(names(driver)) == 3
    assert {info.name: info.created for info in driver.walk() if info.name in created} == created


def test_several_processes_at_once(store: ImageStore, archive: Archive, driver_root: str) -> None:
    """All of them get the same tree, and it is unpacked once."""
    image = layered(store, archive)
    expected = chain_ids(image.layers)
    reading, writing = os.pipe()

    def work() -> None:
        os.close(writing)
        os.read(reading, 1)  # ends for all of them at once, when the parent closes its end
        own = reopen(driver_root)
        assert unpack(ImageStore(store.root), image, own) == expected[-1]
        own.close()

    children: list[Child] = [in_child(work) for _ in range(4)]
    os.close(writing)
    statuses = [child.wait() for child in children]
    os.close(reading)
    assert statuses == [0, 0, 0, 0]
    driver = reopen(driver_root)
    try:
        assert names(driver) == expected
        assert_content(driver, expected[-1], LAYERED)
    finally:
        driver.close()
    assert not mounted_below(store.root)


def test_a_refused_layer_leaves_nothing(
    store: ImageStore, archive: Archive, driver: Snapshotter, tmp_path: Path
) -> None:
    """One that validation cannot judge: its target is in the layer below, and is a directory there."""
    image = layered(store, archive)
    bad = tmp_path / "bad.tar"
    bad.write_bytes(tape.archive(tape.directory(b"d/"), tape.file(b"new"), tape.file(b"etc/a/below")))
    top = import_rootfs(store, str(bad), "bad")
    image = dataclasses.replace(top, layers=(*image.layers, *top.layers), blobs=(*image.blobs, *top.blobs))
    says = r"of image bad:latest: etc/a/below \(byte 1024\): a part of its name"
    with pytest.raises(ImageError, match=says) as caught:
        unpack(store, image, driver)
    assert "\n" not in str(caught.value)
    assert names(driver) == chain_ids(image.layers)[:3]
    assert not mounted_below(store.root)


def test_a_damaged_blob_is_seen(store: ImageStore, archive: Archive, driver: Snapshotter) -> None:
    """Also where the archive is still an archive."""
    image = import_rootfs(store, archive({"file": "right"}), "a")
    path = f"{store.root}/blobs/sha256/{image.layers[0][7:]}"
    Path(path).write_bytes(Path(path).read_bytes().replace(b"right", b"wrong"))
    with pytest.raises(ImageError, match="of image a:latest: its diff id is wrong: it is damaged on disk"):
        unpack(store, image, driver)
    assert names(driver) == []


def test_importing_the_same_archive_heals_a_damaged_blob(
    store: ImageStore, archive: Archive, driver: Snapshotter
) -> None:
    archived = archive({"file": "right"})
    image = import_rootfs(store, archived, "a")
    Path(f"{store.root}/blobs/sha256/{image.layers[0][7:]}").write_bytes(b"")
    import_rootfs(store, archived, "a")
    assert_content(driver, unpack(store, image, driver), {"file": "right"})


def test_an_image_that_is_removed_meanwhile(store: ImageStore, archive: Archive, driver: Snapshotter) -> None:
    image = import_rootfs(store, archive(), "a")
    store.remove("a")
    with pytest.raises(NoSuchImage, match="was removed meanwhile; pull, load or import"):
        unpack(store, image, driver)
    assert names(driver) == []


def test_an_interrupt_leaves_nothing(
    store: ImageStore, archive: Archive, driver: Snapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = layered(store, archive)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    unpack(store, lowest(image, 1), driver)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(layers, "extract", interrupted)
        unpack(store, image, driver)
    assert names(driver) == [image.layers[0]]
    assert not mounted_below(store.root)


def killed_while_extracting(store: ImageStore, image: Image, driver_root: str, layer: int) -> None:
    """A process unpacks `layer` layers of the image, and is killed with the next one written."""

    def work() -> None:
        own = reopen(driver_root)
        if layer:
            unpack(store, lowest(image, layer), own)

        def killed(stream: io.BytesIO, fd: int) -> None:
            extract(stream, fd)
            os.kill(os.getpid(), signal.SIGKILL)

        layers.extract = killed  # type: ignore[assignment, attr-defined]
        unpack(store, image, own)

    assert in_child(work).wait() == -signal.SIGKILL
    assert not mounted_below(store.root)


def test_forgetting_takes_back_what_a_killed_process_left(
    store: ImageStore, archive: Archive, driver_root: str
) -> None:
    image = import_rootfs(store, archive(), "a")
    killed_while_extracting(store, image, driver_root, 0)
    driver = reopen(driver_root)
    assert len(names(driver)) == 1
    assert forget_snapshots(store, driver) == []
    assert names(driver) == []
    assert not mounted_below(store.root)
    driver.close()


@pytest.mark.parametrize("layer", [0, 1])
def test_killed_while_extracting(layer: int, store: ImageStore, archive: Archive, driver_root: str) -> None:
    """The next one to unpack takes back what is left, and starts again."""
    image = layered(store, archive)
    killed_while_extracting(store, image, driver_root, layer)
    driver = reopen(driver_root)
    try:
        left = names(driver)
        assert len(left) == layer + 1
        assert left[-1].startswith("unpack-")
        name = unpack(store, image, driver)
        assert names(driver) == chain_ids(image.layers)
        assert_content(driver, name, LAYERED)
    finally:
        driver.close()
    assert not mounted_below(store.root)


def test_a_mount_namespace_that_is_made_meanwhile(
    store: ImageStore, archive: Archive, driver: Snapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By anybody, at each layer; it is a copy of all mounts, and in use until the layers are committed and beyond."""
    image = layered(store, archive)
    mine = os.stat("/proc/self/ns/mnt").st_ino
    made = []

    def look_on(stream: io.BytesIO, fd: int) -> object:
        child = subprocess.Popen(["unshare", "-m", "cat"], stdin=subprocess.PIPE)
        made.append(child)
        wait_until(lambda: os.stat(f"/proc/{child.pid}/ns/mnt").st_ino != mine, "there is a namespace")
        return extract(stream, fd)

    monkeypatch.setattr(layers, "extract", look_on)
    try:
        unpack(store, image, driver)
        assert names(driver) == chain_ids(image.layers)
        assert len(made) == len(image.layers)
        # Nothing of the layers is held: those that no image in the store has can go at once.
        assert forget_snapshots(store, driver) == chain_ids(image.layers)[:0:-1]
    finally:
        for child in made:
            child.communicate()


def test_killed_before_each_step(
    store: ImageStore, archive: Archive, tmp_path: Path
) -> None:
    """On overlay2, the third layer."""
    if not (found := probe("overlay2", str(tmp_path))).works:
        pytest.skip(f"overlay2: {found.reason}")
    image = layered(store, archive)
    root = str(tmp_path / "root" / "drivers" / "overlay2")
    driver = reopen(root)
    unpack(store, lowest(image, 2), driver)
    chains = chain_ids(image.layers)
    step, status, committed = 0, -signal.SIGKILL, set()
    while status == -signal.SIGKILL:
        step += 1

        def work(last: int = step) -> None:
            own = reopen(root)

            def kill(number: int) -> None:
                if number == last:
                    os.kill(os.getpid(), signal.SIGKILL)

            steps.before_each_step(lambda: unpack(store, image, own), kill, within=[IMAGES])
            own.close()

        status = in_child(work).wait()
        committed.add(chains[-1] in names(driver))
        assert unpack(store, image, driver) == chains[-1]
        assert_content(driver, chains[-1], LAYERED)
        forget_snapshots(store, driver)  # the store has no image of three layers: all go, and the left-overs
        assert names(driver) == [chains[0]]
        assert not mounted_below(store.root)
        unpack(store, lowest(image, 2), driver)
    driver.close()
    assert status == 0
    assert committed == {False, True}
    assert step > 30, "the steps were not seen"


def test_forgetting(store: ImageStore, archive: Archive, driver: Snapshotter) -> None:
    """What an image had alone goes; what a container is built on stays until that is gone."""
    kept = import_rootfs(store, archive(), "kept")
    gone = import_rootfs(store, archive({"x": "y"}, "b.tar"), "gone")
    for image in (kept, gone):
        unpack(store, image, driver)
    driver.prepare("container", gone.layers[0])
    assert forget_snapshots(store, driver) == []
    store.remove("gone")
    assert forget_snapshots(store, driver) == []
    assert names(driver) == [*kept.layers, *gone.layers, "container"]
    driver.remove("container")
    assert forget_snapshots(store, driver) == [*gone.layers]
    assert names(driver) == [*kept.layers]
    assert_content(driver, kept.layers[0], ROOTFS)


def test_forgetting_leaves_what_is_not_an_images(store: ImageStore, driver: Snapshotter) -> None:
    for key, name in (("a", "container-layer"), ("b", "")):
        driver.prepare(key)
        if name:
            driver.commit(name, key)
    assert forget_snapshots(store, driver) == []
    assert names(driver) == ["container-layer", "b"]
    driver.remove("b")  # or its driver keeps its devices for whoever mounts it


def test_an_image_without_layers(store: ImageStore, archive: Archive, driver: Snapshotter) -> None:
    """FROM scratch and a configuration: what is built on it is built on nothing."""
    image = dataclasses.replace(import_rootfs(store, archive(), "a"), layers=(), blobs=())
    assert unpack(store, image, driver) == ""
    assert names(driver) == []


def test_an_empty_archive_is_an_empty_tree(store: ImageStore, driver: Snapshotter, tmp_path: Path) -> None:
    (tmp_path / "scratch.tar").write_bytes(bytes(10240))
    image = import_rootfs(store, str(tmp_path / "scratch.tar"), "scratch")
    assert_content(driver, unpack(store, image, driver), {})


def test_every_kind_of_entry_over_a_layer(
    store: ImageStore, archive: Archive, driver: Snapshotter, tmp_path: Path
) -> None:
    """Attributes, capabilities, devices, hard links into the layer below, what replaces: as on a plain directory."""
    below = import_rootfs(store, archive({**ROOTFS, "x": {"deep": {"er": "e"}}, "keep": "k"}, "below.tar"), "below")
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    above = tape.archive(
        tape.directory(b"./", mode=0o711, mtime=5), tape.directory(b"etc/", mode=0o705, uid=3, mtime=77),
        tape.file(b"bin/su", b"s" * 70_000, mode=0o4755, gid=8),
        tape.pax({b"SCHILY.xattr.security.capability": capability, b"mtime": b"9.000000001"}),
        tape.file(b"bin/ping", b"p", mode=0o755), tape.hard_link(b"bin/ping6", b"bin/ping"),
        tape.hard_link(b"kept", b"keep"), tape.header(b"dev/null", b"3", mode=0o666, major=1, minor=3),
        tape.header(b"pipe", b"6", mode=0o622, uid=9), tape.symlink(b"bin/ls", b"/bin/busybox", uid=5, mtime=11),
        tape.file(b"x/deep", b"a file now"), tape.directory(b"bin/sh/", mode=0o1777), tape.file(b"etc/.wh.passwd"),
        tape.symlink(b"usr", b"bin"), tape.file(b"usr/through", b"t"),
    )  # fmt: skip
    with store._blobs.writer() as layer:  # an import would miss what the hard link leads to
        layer.write(above)
        blob = Descriptor(LAYER, layer.publish(), layer.size)
        image = dataclasses.replace(below, layers=(*below.layers, blob.digest), blobs=(*below.blobs, blob))
    plain = tmp_path / "plain"
    plain.mkdir()
    fd = os.open(plain, os.O_RDONLY)
    try:
        for diff_id in image.layers:
            with store.open_blob(diff_id) as stream:
                extract(stream, fd)
    finally:
        os.close(fd)
    name = unpack(store, image, driver)
    assert_same(read(str(plain)), content(driver, name))  # type: ignore[arg-type]
    assert {"bin/ping6", "kept", "dev/null", "bin/through"} <= set(read(str(plain)))
