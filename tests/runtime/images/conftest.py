from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.images.store import ImageStore
from tests.trees import Dir, File, Symlink, Tree, build

ROOTFS: Tree = {
    "bin": {"sh": File("#!", mode=0o4755), "ls": Symlink(target="sh")},
    "etc": Dir({"passwd": File("root:x:0:0::/:/bin/sh\n", mtime_ns=1_500_000_000_123_456_789)}, mode=0o750, gid=7),
    "tmp": Dir({}, mode=0o1777),
}
# The programs xz and bzip2 are not on every machine; the modules are.
COMPRESSORS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


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


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path / "root" / "images"))


def contents(store: ImageStore) -> list[str]:
    """Every file and directory of a store but its lock files, relative."""
    found = []
    for top, directories, files in os.walk(store.root):
        found += [os.path.relpath(os.path.join(top, name), store.root) for name in [*directories, *files]]
    return sorted(name for name in found if not name.endswith("lock"))
