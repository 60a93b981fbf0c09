"""Layers as other tools write them, one over the other: loaded, unpacked by each kind of driver, and written again."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from drivers import diff
from drivers.api import Snapshotter
from drivers.catalog import open_driver, probe
from runtime.errors import ImageError
from runtime.images import save
from runtime.images.blobs import digest_of
from runtime.images.load import load
from runtime.images.store import ImageStore
from runtime.images.unpack import chain_ids, unpack
from tests.drivers.archive import tape
from tests.drivers.archive.tape import directory, file, hard_link, header, pax, symlink
from tests.mounting import mounted
from tests.trees import Dir, File, Found, HardLink, Symlink, Tree, assert_same, assert_tree, build, read

DRIVERS = ("fuse-aufs", "overlay2", "vfs")

LAYERS = (
    # A root file system with a mode of its own, and Debian's absolute link to a directory that is not there.
    tape.archive(
        directory(b"./", mode=0o711), directory(b"./var/"), symlink(b"./var/run", b"/run"),
        symlink(b"./lib", b"usr/lib"), directory(b"./etc/"),
        *(file(b"./etc/" + name, name) for name in (b"a", b"b", b"gone", b"linked")),
        directory(b"./usr/bin/"), file(b"./usr/bin/x", b"x", mode=0o4755), directory(b"./opaque/old/"),
        file(b"./opaque/f", b"f"), file(b"./file", b"f"), directory(b"./dir/below/"), symlink(b"./link", b"etc/a"),
        symlink(b"./climbs", b"../../../srv/./x/"), directory(b"./dind/"), file(b"./dind/one", b"1"),
        file(b"./dind/two", b"2"),
    ),
    # Entries below links, a hard link of a lower file, another engine's marks; as umoci's insert ends.
    b"".join([
        file(b"var/run/app/pid", b"7"), file(b"lib/new", b"n"), file(b"climbs/deep", b"c"),
        hard_link(b"etc/linked2", b"/etc/linked"), hard_link(b"lib/y", b"usr/bin/x"), hard_link(b"link2", b"link"),
        header(b"dind/one", b"3"), hard_link(b"dind/two", b"dind/one"),
        pax({b"SCHILY.xattr.trusted.overlay.opaque": b"y", b"SCHILY.xattr.user.overlay.impure": b"y",
             b"SCHILY.xattr.user.containers.override_stat": b"0:0:0755", b"SCHILY.xattr.user.kept": b"k"}),
        directory(b"dind/"), header(b"last", size=2), b"no",
    ]),
    # What is hidden and brought in one layer, in both orders, with the mark of an opaque directory behind its contents.
    tape.archive(
        file(b"/etc/a", b"new a"), file(b"etc/.wh.a"), file(b"etc/.wh.b"), file(b"etc/./b", b"new b"),
        file(b"etc/x/../.wh.gone"), directory(b"opaque"), file(b"opaque/new", b"first"), file(b"opaque/new", b"second"),
        file(b"opaque/.wh..wh..opq"), directory(b"file/"), file(b"file/inside"), file(b"dir", b"now a file"),
        file(b"nobody", uid=tape.base256(-2, 8), mtime=b"\0" * 12), file(b".wh.absent", b"with content"),
        directory(b".wh..wh.plnk/"), file(b".wh..wh.plnk/5.1", b"pseudo"), hard_link(b"p1", b".wh..wh.plnk/5.1"),
        hard_link(b"p2", b".wh..wh.plnk/5.1"), file(b".wh..wh.aufs"), directory(b".wh..wh.orph/"),
    ),
    b"",  # no byte at all
    bytes(1024),
    bytes(1024),
    tape.archive(file(b"stargz.index.json", b"{}"), file(b".no.prefetch.landmark", b"\x0f")) + b"not of the archive",
)  # fmt: skip

TREE: Tree = {
    "var": {"run": Symlink(target="/run")}, "run": {"app": {"pid": "7"}}, "lib": Symlink(target="usr/lib"),
    "etc": {"a": "new a", "b": "new b", "linked": HardLink("linked2"), "linked2": "linked"},
    "usr": {"bin": {"x": HardLink("../lib/y")}, "lib": {"new": "n", "y": File("x", mode=0o4755)}},
    "opaque": {"new": "second"}, "file": {"inside": ""}, "dir": "now a file", "link": Symlink(target="etc/a"),
    "link2": HardLink("link"), "climbs": Symlink(target="../../../srv/./x/"), "srv": {"x": {"deep": "c"}},
    "dind": Dir({}, xattrs={"user.kept": b"k"}), "last": "no", "nobody": File("", uid=(1 << 32) - 2, mtime_ns=0),
    "p1": HardLink("p2"), "p2": "pseudo", "stargz.index.json": "{}", ".no.prefetch.landmark": "\x0f",
}  # fmt: skip


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Snapshotter]:
    found = probe(request.param, str(tmp_path))
    if not found.works:
        pytest.skip(f"{request.param}: {found.reason}")
    opened = open_driver(request.param, str(tmp_path / "driver"))
    yield opened
    opened.close()


def archive_of(layers: tuple[bytes, ...], path: Path) -> Path:
    """As `docker save` has an image, each layer packed in its own way."""
    packings = (bytes, gzip.compress, lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]) + bytes(999))
    configuration = json.dumps({"rootfs": {"diff_ids": [*map(digest_of, layers)]}, "history": [{}] * 99}).encode()
    members = {f"{number}/layer.tar": packings[number % 3](layer) for number, layer in enumerate(layers)}
    item = {"Config": "config.json", "RepoTags": ["odd:1"], "Layers": [*members]}
    members |= {"config.json": configuration, "manifest.json": json.dumps([item]).encode()}
    path.write_bytes(tape.archive(*(file(name.encode(), data) for name, data in members.items())))
    return path


def content(driver: Snapshotter, name: str, *, times: bool = True) -> dict[str, Found]:
    mounts = driver.view("look", name)
    try:
        with mounted(mounts) as path:
            return dict(read(path, times=times))
    finally:
        driver.remove("look")


def test_odd_layers_on_every_kind_of_driver(driver: Snapshotter, store: ImageStore, tmp_path: Path) -> None:
    ((image, _),) = load(store, str(archive_of(LAYERS, tmp_path / "odd.tar")))
    top = unpack(store, image, driver)
    mounts = driver.view("look", top)
    with mounted(mounts) as path:
        assert_tree(path, TREE)
        assert os.stat(path).st_mode & 0o7777 == 0o711
        before = read(path)
    driver.remove("look")

    # Each layer written again, and made of that: the same tree.
    parent = ""
    for chain in chain_ids(image.layers):
        with open(tmp_path / "layer.tar", "w+b") as written:
            diff.write_diff(driver, chain, written.write)
            written.seek(0)
            driver.prepare("again", parent)
            diff.apply(driver, "again", written)
        parent = f"again-{chain}"
        driver.commit(parent, "again")
    assert_same(before, content(driver, parent))


def test_odd_layers_are_saved_as_they_came(store: ImageStore, tmp_path: Path) -> None:
    ((image, _),) = load(store, str(archive_of(LAYERS, tmp_path / "odd.tar")))
    with open(tmp_path / "saved.tar", "wb") as out:
        save.archive(store, save.choose(store, ["odd:1"]), out.write)
    store.remove("odd:1")
    ((again, names),) = load(store, str(tmp_path / "saved.tar"))
    assert (again.id, again.manifest, again.blobs, names) == (image.id, image.manifest, image.blobs, ("odd:1",))


def test_a_hard_link_to_nothing_is_refused_where_that_is_known(
    store: ImageStore, driver: Snapshotter, tmp_path: Path
) -> None:
    """In the lowest layer when it is loaded, in another when it is unpacked."""
    link = tape.archive(hard_link(b"a", b"nothing"))
    with pytest.raises(ImageError, match=r"0/layer\.tar: a \(byte 0\): it is a hard link to nothing, which does"):
        list(load(store, str(archive_of((link,), tmp_path / "lowest.tar"))))
    for number, lower in enumerate((tape.archive(), tape.archive(file(b"nothing")))):
        upper = link if not number else tape.archive(file(b".wh.nothing"), hard_link(b"a", b"nothing"))
        ((image, _),) = load(store, str(archive_of((lower, upper), tmp_path / "upper.tar")))
        with pytest.raises(ImageError, match="a hard link to nothing, which does not exist"):
            unpack(store, image, driver)


# What tools on this machine write, and what they themselves read of it.


def call(*words: object) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


class Elsewhere(NamedTuple):
    image: Path
    tree: dict[str, Found]


SOURCE: Tree = {
    "var": {"run": Symlink(target="/run")}, "lib": Symlink(target="usr/lib"), "usr": {"lib": {}},
    "etc": {"a": File("a", xattrs={"user.note": b"k"}), "b": "b", "h": HardLink("a")}, "opt": {"x": {"y": "y"}},
    "su": File("x" * 5000, mode=0o4755, uid=7),
}  # fmt: skip


@pytest.fixture(scope="session")
def of_umoci(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """Layers of `insert`, which have no end: files, a whiteout, an opaque directory."""
    place = tmp_path_factory.mktemp("umoci")
    image = f"{place}/layout:box"
    build(str(place / "source"), SOURCE)
    call("umoci", "init", "--layout", place / "layout")
    call("umoci", "new", "--image", image)
    for words in ((place / "source", "/"), ("--whiteout", "/etc/b"), ("--opaque", place / "source/etc", "/opt"),
                  (place / "source/su", "/opt/deeper/su")):  # fmt: skip
        call("umoci", "insert", "--image", image, *words)
    call("umoci", "unpack", "--image", image, place / "bundle")
    return Elsewhere(place / "layout", dict(read(str(place / "bundle/rootfs"), times=False)))


def of_buildah(place: Path, storage: str) -> Elsewhere:
    state = ("--root", place / "root", "--runroot", place / "run", "--storage-driver", storage)

    def buildah(*words: object) -> str:
        return call("buildah", *state, *words)

    build(str(place / "source"), SOURCE)
    lower = buildah("from", "scratch")
    buildah("add", lower, place / "source", "/")
    buildah("commit", lower, "one")
    upper = buildah("from", "--pull=never", "one")
    try:
        changed = Path(buildah("mount", upper))
        shutil.rmtree(changed / "opt/x")
        (changed / "etc/b").unlink()
        build(str(changed / "opt/x"), {"z": "z"})
        build(str(changed / "run"), {"app": {"pid": "7"}})
        os.link(changed / "etc/a", changed / "etc/new")
        os.chmod(changed / "etc", 0o700)
        # Overlayfs counts the links of the file below; what its root may do is no part of the image.
        found = read(str(changed), times=False)
        tree = {name: replace(one, nlink=None, links=None) for name, one in found.items() if name != "."}
        buildah("commit", upper, f"oci-archive:{place}/two.tar")
    finally:
        buildah("umount", "--all")
        buildah("rm", "--all")
        subprocess.run(["umount", str(place / "root" / storage)], stderr=subprocess.DEVNULL, check=False)
    return Elsewhere(place / "two.tar", tree)


@pytest.mark.needs("program:umoci")
def test_what_umoci_inserts(of_umoci: Elsewhere, driver: Snapshotter, store: ImageStore) -> None:
    assert_unpacked(of_umoci, driver, store)


@pytest.fixture(scope="session", params=["vfs", "overlay"])
def of_buildahs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    return of_buildah(tmp_path_factory.mktemp("buildah"), request.param)


@pytest.mark.needs("program:buildah")
def test_what_buildah_commits(of_buildahs: Elsewhere, driver: Snapshotter, store: ImageStore) -> None:
    assert_unpacked(of_buildahs, driver, store)


def assert_unpacked(elsewhere: Elsewhere, driver: Snapshotter, store: ImageStore) -> None:
    ((image, _),) = load(store, str(elsewhere.image))
    found = content(driver, unpack(store, image, driver), times=False)
    assert_same(elsewhere.tree, {name: one for name, one in found.items() if name in elsewhere.tree or name != "."})
