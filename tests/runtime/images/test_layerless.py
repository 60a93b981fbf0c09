"""An image without layers, as a Dockerfile of `FROM scratch` and settings makes it: an image as any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.images.blobs import digest_of
from tests.drivers.archive import tape
from tests.runtime.conftest import Runtime

CONFIGURATION = json.dumps({
    "os": "linux", "architecture": "amd64", "config": {"Cmd": ["/bin/busybox", "ls", "/"], "Volumes": {"/data": {}}},
    "rootfs": {"diff_ids": None}, "history": [{"created_by": "VOLUME /data", "empty_layer": True}],
}).encode()  # fmt: skip
IMAGE_ID = digest_of(CONFIGURATION)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """What `docker save` makes of it."""
    name = f"{IMAGE_ID[7:]}.json"
    item = {"Config": name, "RepoTags": ["scratch:1"], "Layers": None}
    parts = (tape.file(name.encode(), CONFIGURATION), tape.file(b"manifest.json", json.dumps([item]).encode()))
    path = tmp_path / "scratch.tar"
    path.write_bytes(tape.archive(*parts))
    return path


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    "driver", ["vfs", "overlay2", pytest.param("fuse-aufs", marks=pytest.mark.needs("fuse"))]
)
def test_it_is_an_image(driver: str, archive: Path, rootfs: Path, tmp_path: Path) -> None:
    runtime = Runtime(tmp_path / "root", tmp_path / "state", driver)
    volume = ("--network=none", "-v", f"{rootfs}/bin:/bin:ro")
    assert runtime("load", "-i", archive) == "Loaded image: scratch:1\n"
    assert "VOLUME /data" in runtime("history", "scratch:1")
    assert json.loads(runtime("inspect", "scratch:1"))[0]["RootFS"]["Layers"] == []

    assert {"bin", "dev", "proc"} <= set(runtime("run", "--rm", *volume, "scratch:1").split())
    runtime("run", "--name=box", *volume, "scratch:1", "/bin/busybox", "touch", "/made")
    assert "A /made\n" in runtime("diff", "box")
    runtime("commit", "box", "made:1")
    runtime("rm", "box")
    assert len(json.loads(runtime("inspect", "made:1"))[0]["RootFS"]["Layers"]) == 1

    runtime("save", "-o", tmp_path / "both.tar", "scratch:1", "made:1")
    runtime("rmi", "scratch:1", "made:1")
    assert runtime("load", "-i", tmp_path / "both.tar") == "Loaded image: scratch:1\nLoaded image: made:1\n"
    assert json.loads(runtime("inspect", "scratch:1"))[0]["Id"] == IMAGE_ID
    assert "made" in runtime("run", "--rm", *volume, "made:1", "/bin/busybox", "ls", "/").split()
