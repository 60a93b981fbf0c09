"""Images that other tools made, and tools that take what we pushed, by one registry."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.images.store import ImageStore
from tests.runtime.conftest import Runtime
from tests.runtime.registry.conftest import Registry


def call(*words: object) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def skopeo(*words: object) -> str:
    return call("skopeo", *words)


pytestmark = pytest.mark.needs("fuse")


@pytest.fixture
def fresh(new_runtime: Callable[[], Runtime]) -> Runtime:
    """On this project's own union: layers of other tools are what it is made for."""
    return new_runtime().on("fuse-aufs")


@pytest.fixture
def layout(tmp_path: Path, rootfs: Path) -> Path:
    """An OCI layout with one image, made by umoci: gzip layers, the second with a whiteout and a new file."""
    layout, bundle = tmp_path / "layout", tmp_path / "bundle"
    call("umoci", "init", "--layout", layout)
    call("umoci", "new", "--image", f"{layout}:box")
    call("umoci", "unpack", "--image", f"{layout}:box", bundle)
    call("cp", "-a", f"{rootfs}/.", bundle / "rootfs")
    call("umoci", "repack", "--refresh-bundle", "--image", f"{layout}:box", bundle)
    (bundle / "rootfs/etc/motd").write_text("second layer\n")
    (bundle / "rootfs/etc/group").unlink()
    call("umoci", "repack", "--refresh-bundle", "--image", f"{layout}:box", bundle)
    call("umoci", "config", "--image", f"{layout}:box", "--config.cmd", "cat", "--config.cmd", "/etc/motd")
    return layout


@pytest.mark.needs("program:umoci", "program:skopeo")
@pytest.mark.parametrize("form", ["oci", "v2s2", "zstd", "plain"])
def test_skopeo_copies_what_umoci_made(fresh: Runtime, registry: Registry, layout: Path, form: str) -> None:
    name = f"{registry.host}/tools/umoci:{form}"
    options = {
        "oci": [], "v2s2": ["--format", "v2s2"], "zstd": ["--dest-compress-format", "zstd", "--dest-compress"],
        "plain": ["--dest-decompress"],
    }[form]  # fmt: skip
    source = f"oci:{layout}:box"
    if form in ("zstd", "plain"):
        # To a registry it compresses as it likes; a directory keeps what is asked for.
        skopeo("copy", *options, source, f"dir:{layout}-{form}")
        source, options = f"dir:{layout}-{form}", ["--preserve-digests"]
    skopeo("copy", *options, "--dest-tls-verify=false", source, f"docker://{name}")
    assert _layers(name) == {"oci": "tar+gzip", "v2s2": "diff.tar.gzip", "zstd": "tar+zstd", "plain": "v1.tar"}[form]
    fresh("pull", name)
    assert fresh("run", "--rm", "--network=none", name) == "second layer\n"
    assert fresh("run", "--rm", "--network=none", name, "ls", "/etc/passwd", "/etc/.").count("group") == 0


def _layers(name: str) -> str:
    """The end of the media type that all layers have."""
    manifest = json.loads(skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}"))
    (media_type,) = {layer["mediaType"] for layer in manifest["layers"]}
    return next(end for end in ("tar+gzip", "tar+zstd", "diff.tar.gzip", "v1.tar") if media_type.endswith(end))


@pytest.mark.needs("program:skopeo")
def test_what_we_push_is_what_skopeo_sees(fresh: Runtime, registry: Registry, rootfs_tar: Path, tmp_path: Path) -> None:
    name = f"{registry.host}/tools/ours:1"
    fresh("import", "-c", 'CMD ["echo", "ours"]', "-c", "ENV A=b", rootfs_tar, name)
    pushed = fresh("push", name)
    seen = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}"))
    assert seen["Digest"] in pushed
    assert seen["Env"] == ["A=b"]
    assert seen["RepoTags"] == ["1"]
    skopeo("copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/copy:1")


@pytest.mark.needs("program:umoci", "program:skopeo")
def test_what_is_pulled_and_pushed_on_has_the_same_digest(fresh: Runtime, registry: Registry, layout: Path) -> None:
    """Manifest and layers byte for byte, docker's media types too; the layers are not sent again."""
    source, copy = f"{registry.host}/tools/source:1", f"{registry.host}/tools/copy/deeper:2"
    skopeo("copy", "--format", "v2s2", "--dest-tls-verify=false", f"oci:{layout}:box", f"docker://{source}")
    fresh("pull", source)
    ImageStore(f"{fresh.root}/images").tag(source, copy)
    posted = len(registry.requests("PUT"))
    pushed = fresh("push", copy)
    assert pushed.count(": Mounted from tools/source\n") == 2, pushed
    assert len(registry.requests("PUT")) == posted + 1, "only the manifest"
    for name in (source, copy):
        assert json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}"))["Digest"] in pushed
    assert "Mounted" not in fresh("push", copy)


@pytest.mark.needs("program:buildah")
def test_buildah_builds_on_what_we_pushed(fresh: Runtime, registry: Registry, rootfs_tar: Path, tmp_path: Path) -> None:
    base, built = f"{registry.host}/tools/base:1", f"{registry.host}/tools/built:1"
    fresh("import", rootfs_tar, base)
    fresh("push", base)

    def buildah(*words: object) -> str:
        state = ["--root", tmp_path / "buildah", "--runroot", tmp_path / "buildah-run", "--storage-driver", "vfs"]
        return call("buildah", *state, *words).strip()

    container = buildah("from", "--tls-verify=false", base)
    buildah("run", "--isolation", "chroot", container, "sh", "-c", "echo built > /etc/motd; rm -r /home")
    buildah("config", "--cmd", "cat /etc/motd", container)
    buildah("commit", "--tls-verify=false", "--rm", container, f"docker://{built}")
    assert fresh("run", "--rm", "--network=none", built) == "built\n"
    assert "home" not in fresh("run", "--rm", "--network=none", built, "ls", "/").split()
    buildah("rmi", "--all", "--force")


@pytest.mark.needs("program:umoci", "program:skopeo", "program:buildah")
def test_an_index_of_two_platforms(
    fresh: Runtime, registry: Registry, layout: Path, tmp_path: Path
) -> None:
    """Made by `buildah manifest`: this machine's image is chosen, or the one that is asked for."""
    name = f"{registry.host}/tools/many"
    other = "s390x"
    skopeo("copy", "--dest-tls-verify=false", f"oci:{layout}:box", f"docker://{name}:here")
    call("umoci", "config", "--image", f"{layout}:box", "--architecture", other, "--config.cmd", "true")
    skopeo("copy", "--dest-tls-verify=false", f"oci:{layout}:box", f"docker://{name}:there")
    state = ["--root", tmp_path / "buildah", "--runroot", tmp_path / "buildah-run", "--storage-driver", "vfs"]
    call("buildah", *state, "manifest", "create", "many")
    for tag in ("there", "here"):
        call("buildah", *state, "manifest", "add", "--tls-verify=false", "many", f"docker://{name}:{tag}")
    call("buildah", *state, "manifest", "push", "--tls-verify=false", "--all", "many", f"docker://{name}:latest")

    pulled = fresh("pull", name)
    assert pulled.startswith("Using default tag: latest\nlatest: Pulling from tools/many\n")
    assert fresh("run", "--rm", "--network=none", name) == "second layer\n"
    index = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}")
    assert len(json.loads(index)["manifests"]) == 2
    fresh("pull", "--platform", f"linux/{other}", name)
    assert json.loads(index)["manifests"][0]["platform"]["architecture"] == other
    refused = fresh.refused("pull", "-q", "--platform", "linux/riscv64", name)
    assert "riscv64" in refused and other in refused
    assert "is an image for" in fresh.refused("pull", "-q", "--platform", "linux/arm64", f"{name}:there")
    assert os.listdir(fresh.root / "images/incoming") == []


def test_all_tags(
    fresh: Runtime, new_runtime: Callable[[], Runtime], registry: Registry, rootfs_tar: Path
) -> None:
    name = f"{registry.host}/tools/tags"
    for tag in ("a", "b", "c"):
        fresh("import", "-c", f"ENV T={tag}", rootfs_tar, f"{name}:{tag}")
        fresh("push", "-q", f"{name}:{tag}")
    other = new_runtime()
    out = other("pull", "-a", "-q", name)
    assert out == f"{name}\n"
    for tag in ("a", "b", "c"):
        assert other("run", "--rm", "--network=none", f"{name}:{tag}", "sh", "-c", "echo $T") == f"{tag}\n"
    assert "without a tag" in other.refused("pull", "-a", f"{name}:a")
