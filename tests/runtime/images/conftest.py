from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import runtime.images
from runtime.images import document
from runtime.images.blobs import digest_of
from runtime.images.document import Descriptor
from runtime.images.platforms import host
from runtime.images.store import ImageStore
from tests.drivers.archive import tape
from tests.trees import Dir, File, Symlink, Tree, build
from unionfs.linux import mounts

# What before_each_step() counts as steps here.
IMAGES = os.path.dirname(runtime.images.__file__)

ROOTFS: Tree = {
    "bin": {"sh": File("#!", mode=0o4755), "ls": Symlink(target="sh")},
    "etc": Dir({"passwd": File("root:x:0:0::/:/bin/sh\n", mtime_ns=1_500_000_000_123_456_789)}, mode=0o750, gid=7),
    "tmp": Dir({}, mode=0o1777),
}
# The programs xz and bzip2 are not on every machine; the modules are.
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., str]:
    """`archive(tree, name)` gives the path of a tar of the tree, made by GNU tar and compressed as its name says."""

    def make(tree: Tree = ROOTFS, name: str = "rootfs.tar") -> str:
        source = build(str(tmp_path / f"{name}.d"), tree)
        os.chmod(source, 0o755)
        path = str(tmp_path / name)
        subprocess.run(["tar", "-C", source, "--format=pax", "--xattrs", "-cf", path, "."], check=True)
        if compress := COMPRESSORS.get(os.path.splitext(name)[1]):
            with open(path, "r+b") as file:
                data = compress(file.read())
                file.seek(0)
                file.write(data)
                file.truncate()
        return path

    return make


class Made(NamedTuple):
    """An image as a registry has it: every blob by its digest, and the manifest that names them."""

    manifest: bytes
    blobs: dict[str, bytes]
    layers: tuple[str, ...]  # digests, from the bottom up
    id: str


def image_of(layers: Sequence[bytes], *, diff_ids: Sequence[str] | None = None, docker: bool = False) -> Made:
    """An image of plain tars, each compressed by gzip, as docker or as OCI has it."""
    packed = [gzip.compress(layer, 1, mtime=0) for layer in layers]
    configuration = json.dumps({
        "architecture": host().architecture, "os": "linux", "created": "2020-02-02T02:02:02Z",
        "config": {"Cmd": ["sh"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids or [*map(digest_of, layers)]},
        "history": [{"created": "2020-02-02T02:02:02Z", "created_by": f"step {n}"} for n in range(len(layers))],
    }, indent=1).encode()  # fmt: skip
    media = (document.CONFIG, document.LAYER_GZIP)
    if docker:
        media = (document.DOCKER_CONFIG, document.DOCKER_LAYER + ".gzip")
    manifest = json.dumps(document.manifest(
        Descriptor(media[0], digest_of(configuration), len(configuration)),
        [Descriptor(media[1], digest_of(blob), len(blob)) for blob in packed],
        document.DOCKER_MANIFEST if docker else document.MANIFEST,
    ), indent=3).encode()  # fmt: skip
    return Made(
        manifest, {digest_of(blob): blob for blob in (configuration, *packed)}, tuple(map(digest_of, packed)),
        digest_of(configuration),
    )  # fmt: skip


LAYERS = (
    tape.archive(tape.directory(b"etc/"), tape.file(b"etc/a", b"a"), tape.file(b"gone", b"g" * 5000)),
    tape.archive(tape.file(b".wh.gone"), tape.file(b"etc/b", b"b" * 100_000)),
)


def receive(store: ImageStore, made: Made) -> None:
    for digest, blob in made.blobs.items():
        with store.receive(digest, len(blob)) as incoming:
            if not incoming.done:
                for at in range(incoming.position, len(blob), 1000):
                    incoming.write(blob[at : at + 1000])
                incoming.finish()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    opened = ImageStore(str(tmp_path / "root" / "images"))
    yield opened
    opened.close()


@pytest.fixture
def memory_of(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`memory_of("256k")` mounts a tmpfs of that size, and gives its path."""
    target = tmp_path / "memory"

    def mount(size: str) -> Path:
        target.mkdir()
        mounts.mount("tmpfs", str(target), "tmpfs", 0, f"size={size}")
        return target

    yield mount
    if target.exists():
        mounts.umount2(str(target))


def contents(store: ImageStore) -> list[str]:
    """Every file and directory of a store but its lock files and its reserve, relative."""
    found = []
    for top, directories, files in os.walk(store.root):
        if "reserve" in directories:
            directories.remove("reserve")
        found += [os.path.relpath(os.path.join(top, name), store.root) for name in [*directories, *files]]
    return sorted(name for name in found if not name.endswith("lock"))
