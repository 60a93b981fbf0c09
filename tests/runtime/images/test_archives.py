"""OCI layouts and docker archives, in and out: `load` and `save` below their verbs."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from drivers.archive.limits import Limits
from runtime.errors import ImageError, NoSuchImage
from runtime.images import document, save
from runtime.images.blobs import digest_of
from runtime.images.document import DOCKER_MANIFEST, MANIFEST, Descriptor
from runtime.images.image import Image
from runtime.images.load import load
from runtime.images.platforms import compatible, host
from runtime.images.store import ImageStore
from tests import steps
from tests.capabilities import missing
from tests.children import in_child
from tests.drivers.archive import tape
from tests.runtime.images.conftest import IMAGES, LAYERS, Made, contents, image_of, receive

MADE = image_of(LAYERS)
EMPTY = ["blobs", "blobs/sha256"]


def add(store: ImageStore, name: str = "box:1", made: Made = MADE, media_type: str = MANIFEST) -> Image:
    receive(store, made)
    return store.publish(made.manifest, media_type, [name])


def saved(store: ImageStore, *references: str, docker: bool = True) -> bytes:
    pieces: list[bytes] = []
    save.archive(store, save.choose(store, references), pieces.append, docker=docker)
    return b"".join(pieces)


def loaded(store: ImageStore, path: Path) -> list[tuple[str, tuple[str, ...]]]:
    return [(image.id, names) for image, names in load(store, str(path))]


def clear(store: ImageStore) -> None:
    for image in store.list():
        for name in image.references or (image.id,):
            store.remove(name)


def tar_of(path: Path, files: Mapping[str, bytes | str]) -> Path:
    """An archive of `files`; a str is what a symbolic link of that name leads to."""
    members = [
        tape.symlink(name.encode(), content.encode()) if isinstance(content, str) else tape.file(name.encode(), content)
        for name, content in files.items()
    ]
    path.write_bytes(tape.archive(*members))
    return path


def layout_of(
    made: Made, *, names: tuple[str, ...] = ("box:1",), key: str = "io.containerd.image.name"
) -> dict[str, bytes]:
    """The files of an OCI layout."""
    plain = Descriptor(MANIFEST, digest_of(made.manifest), len(made.manifest)).encoded()
    index = [plain | {"annotations": {key: name}} for name in names] or [plain]
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": index}).encode(),
        f"blobs/sha256/{digest_of(made.manifest)[7:]}": made.manifest,
        **{f"blobs/sha256/{digest[7:]}": blob for digest, blob in made.blobs.items()},
    }


def docker_of(layers: tuple[bytes, ...] = LAYERS, **changes: object) -> dict[str, bytes | str]:
    """The files of a docker archive of before version 25."""
    made = image_of(layers)
    packed = {f"{n}/layer.tar": layer for n, layer in enumerate(layers)}
    item = {"Config": f"{made.id[7:]}.json", "RepoTags": ["box:1"], "Layers": list(packed)}
    return {
        **packed,
        f"{made.id[7:]}.json": made.blobs[made.id],
        "manifest.json": json.dumps([item | changes]).encode(),
        "repositories": b"{}",
    }


# Round trips.


@pytest.mark.parametrize("docker", [True, False], ids=["docker", "oci"])
def test_what_is_saved_loads_under_the_same_digests(store: ImageStore, tmp_path: Path, docker: bool) -> None:
    images = [add(store), add(store, "h:5/a/b:2", image_of(LAYERS[:1], docker=True), DOCKER_MANIFEST)]
    store.tag("box:1", "box:also")
    data = saved(store, "box:1", "h:5/a/b:2", "box:also", docker=docker)
    assert data == saved(store, "box:1", "h:5/a/b:2", "box:also", docker=docker)  # byte for byte
    clear(store)
    (tmp_path / "a.tar").write_bytes(data)
    assert loaded(store, tmp_path / "a.tar") == [
        (images[0].id, ("box:1", "box:also")), (images[1].id, ("h:5/a/b:2",)),
    ]  # fmt: skip
    for before in images:
        after = store.get(before.id)
        assert (after.manifest, after.media_type, after.blobs) == (before.manifest, before.media_type, before.blobs)
    assert store.get("box:also").id == images[0].id


def test_the_archive_is_both_forms_at_once(store: ImageStore, tmp_path: Path) -> None:
    """As docker writes it since version 25 (moby image/tarexport/save.go)."""
    image = add(store)
    (tmp_path / "a.tar").write_bytes(saved(store, "box:1"))
    with tarfile.open(tmp_path / "a.tar") as archive:
        names = archive.getnames()
        files = {name: archive.extractfile(name).read() for name in names if archive.getmember(name).isfile()}  # type: ignore[union-attr]
        assert {member.mtime for member in archive} == {0}
    assert names[:6] == ["oci-layout", "index.json", "manifest.json", "repositories", "blobs", "blobs/sha256"]
    [item] = json.loads(files["manifest.json"])
    assert item["RepoTags"] == ["box:1"]
    assert digest_of(files[item["Config"]]) == image.id
    assert [files[name] for name in item["Layers"]] == [MADE.blobs[digest] for digest in MADE.layers]
    [entry] = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"] == {
        "io.containerd.image.name": "docker.io/library/box:1", "org.opencontainers.image.ref.name": "1",
    }  # fmt: skip
    assert files[f"blobs/sha256/{entry['digest'][7:]}"] == MADE.manifest
    assert json.loads(files["repositories"]) == {"box": {"1": image.id[7:]}}


def test_which_images_are_saved(store: ImageStore) -> None:
    image = add(store)
    store.tag("box:1", "box:2")
    store.tag("box:1", "other:1")
    add(store, "box:3", image_of(LAYERS[:1]))
    assert {tags for _, tags in save.choose(store, ["box"])} == {("box:3",), ("box:1", "box:2")}
    assert [tags for _, tags in save.choose(store, ["box:2", "other:1"])] == [("box:2", "other:1")]
    assert [tags for _, tags in save.choose(store, [image.id[7:19]])] == [()]
    with pytest.raises(NoSuchImage, match="there is no image 'nothing'"):
        save.choose(store, ["box", "nothing"])


def test_an_image_by_its_id_has_no_name(store: ImageStore, tmp_path: Path) -> None:
    image = add(store)
    (tmp_path / "a.tar").write_bytes(saved(store, image.id))
    clear(store)
    assert loaded(store, tmp_path / "a.tar") == [(image.id, ())]
    assert store.get(image.id).references == ()


def test_a_damaged_blob_is_not_saved(store: ImageStore) -> None:
    image = add(store)
    path = f"{store.root}/blobs/sha256/{image.blobs[1].digest[7:]}"
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ImageError, match=f"{image.blobs[1].digest} is damaged on disk"):
        saved(store, "box:1")


def test_a_directory(store: ImageStore, tmp_path: Path) -> None:
    image = add(store)
    save.directory(store, save.choose(store, ["box:1"]), str(tmp_path / "layout"))
    clear(store)
    assert loaded(store, tmp_path / "layout") == [(image.id, ("box:1",))]
    assert store.get("box:1").manifest == image.manifest


# Other forms.


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress,
    "zstd": lambda data: subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout,
}  # fmt: skip


@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
@pytest.mark.parametrize("packer", PACKERS)
def test_packed_archives(store: ImageStore, tmp_path: Path, packer: str, pipe: bool) -> None:
    if packer == "zstd" and (reason := missing("program:zstd")):
        pytest.skip(reason)
    image = add(store)
    data = PACKERS[packer](saved(store, "box:1"))
    clear(store)
    path = tmp_path / "archive"
    if not pipe:
        path.write_bytes(data)
        assert loaded(store, path) == [(image.id, ("box:1",))]
        return
    os.mkfifo(path)
    writer = in_child(lambda: (path.write_bytes(data), None)[1])
    assert loaded(store, path) == [(image.id, ("box:1",))]
    assert writer.wait() == 0


@pytest.mark.parametrize("pack", [bytes, gzip.compress, "zstd"], ids=["plain", "gzip", "zstd"])
def test_an_old_docker_archive(store: ImageStore, tmp_path: Path, pack: Any) -> None:
    """The layers of most tools are plain; docker reads compressed ones too."""
    if pack == "zstd" and (reason := missing("program:zstd")):
        pytest.skip(reason)
    packer: Callable[[bytes], bytes] = PACKERS["zstd"] if pack == "zstd" else pack
    files = docker_of()
    for name in [name for name in files if name.endswith("layer.tar")]:
        plain = files[name]
        assert isinstance(plain, bytes)
        files[name] = packer(plain)
    path = tar_of(tmp_path / "a.tar", files)
    [(image_id, names)] = loaded(store, path)
    image = store.get("box:1")
    assert (image_id, names) == (image_of(LAYERS).id, ("box:1",))
    assert image.layers == tuple(map(digest_of, LAYERS))
    first, again = image.manifest, loaded(store, path)
    assert again == [(image_id, names)]
    assert store.get("box:1").manifest == first
    suffix = {bytes: "", gzip.compress: "+gzip", "zstd": "+zstd"}[pack]
    assert {blob.media_type for blob in image.blobs} == {document.LAYER + suffix}


def test_a_layer_that_comes_twice_is_a_link(store: ImageStore, tmp_path: Path) -> None:
    """moby image/tarexport wrote it so up to version 24."""
    files = docker_of((LAYERS[0], LAYERS[1], LAYERS[0]))
    files["2/layer.tar"] = "../0/layer.tar"
    loaded(store, tar_of(tmp_path / "a.tar", files))
    assert store.get("box:1").layers == tuple(map(digest_of, (LAYERS[0], LAYERS[1], LAYERS[0])))
    assert len(store.blob_sizes()) == 4


@pytest.mark.parametrize(
    ("key", "name", "expected"),
    [
        ("io.containerd.image.name", "docker.io/library/box:1", ("box:1",)),
        ("org.opencontainers.image.ref.name", "localhost/box:1", ("localhost/box:1",)),
        ("org.opencontainers.image.ref.name", "latest", ()),  # skopeo's and umoci's: a tag says nothing of a name
        ("org.opencontainers.image.ref.name", "build--x+y/1", ()),  # the specification allows it
        ("org.opencontainers.image.ref.name", f"box@{MADE.id}", ()),
    ],
)
def test_names_in_layouts(store: ImageStore, tmp_path: Path, key: str, name: str, expected: tuple[str, ...]) -> None:
    path = tar_of(tmp_path / "a.tar", layout_of(MADE, names=(name,), key=key))
    assert loaded(store, path) == [(MADE.id, expected)]


def test_an_index_of_platforms(store: ImageStore, tmp_path: Path) -> None:
    """Docker saves the index whole, and of its images those that it has; also where the index is the top one."""
    own = compatible(host())[-1]
    nested = document.encode({"schemaVersion": 2, "mediaType": document.INDEX, "manifests": [
        Descriptor(MANIFEST, "sha256:" + "7" * 64, 5).encoded() | {"platform": {"os": "linux", "architecture": "mips"}},
        Descriptor(MANIFEST, digest_of(MADE.manifest), len(MADE.manifest)).encoded()
        | {"platform": {"os": own.os, "architecture": own.architecture}},
    ]})  # fmt: skip
    top = Descriptor(document.INDEX, digest_of(nested), len(nested)).encoded()
    files = layout_of(MADE) | {
        f"blobs/sha256/{digest_of(nested)[7:]}": nested,
        "index.json": document.encode({"manifests": [top | {"annotations": {"io.containerd.image.name": "box:1"}}]}),
    }
    attestation = Descriptor(MANIFEST, "sha256:" + "8" * 64, 5).encoded() | {
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    assert loaded(store, tar_of(tmp_path / "nested.tar", files)) == [(MADE.id, ("box:1",))]
    clear(store)
    assert loaded(store, tar_of(tmp_path / "top.tar", files | {"index.json": nested})) == [(MADE.id, ())]
    clear(store)
    attested = document.encode({"manifests": [attestation, top]})
    assert loaded(store, tar_of(tmp_path / "attested.tar", files | {"index.json": attested})) == [(MADE.id, ())]


def test_a_layout_takes_its_names_from_docker_where_it_has_none(store: ImageStore, tmp_path: Path) -> None:
    files = layout_of(MADE, names=())
    item = {"Config": f"blobs/sha256/{MADE.id[7:]}", "RepoTags": ["box:1"], "Layers": []}
    path = tar_of(tmp_path / "a.tar", files | {"manifest.json": json.dumps([item]).encode()})
    assert loaded(store, path) == [(MADE.id, ("box:1",))]


def bare(data: bytes, **more: object) -> dict[str, object]:
    """A descriptor that does not say its type, with the bytes themselves and a long annotation."""
    embedded = {"data": base64.b64encode(data).decode(), "annotations": {"long": "x" * 100_000}}
    return {"digest": digest_of(data), "size": len(data)} | embedded | more


@pytest.mark.parametrize("layer", ["", document.LAYER, document.LAYER_ZSTD, f"{document.DOCKER_LAYER}.gzip"])
def test_documents_that_say_less_or_more(store: ImageStore, tmp_path: Path, layer: str) -> None:
    """No types, or another than the content has (it is gzip), docker's among OCI's; an index in an index."""
    layers = [bare(MADE.blobs[digest]) | ({"mediaType": layer} if layer else {}) for digest in MADE.layers]
    manifest = json.dumps({"schemaVersion": 2, "config": bare(MADE.blobs[MADE.id]), "layers": layers}).encode()
    this = {"architecture": host().architecture}
    inner = json.dumps({"schemaVersion": 2, "manifests": [bare(b"{}"), bare(manifest, platform=this)]}).encode()
    outer = json.dumps({"schemaVersion": 2, "manifests": [bare(inner)]}).encode()
    files = layout_of(MADE) | {f"blobs/sha256/{digest_of(data)[7:]}": data for data in (manifest, inner, outer)}
    files["index.json"] = json.dumps({"manifests": [bare(outer)]}).encode()
    ((image_id, _),) = loaded(store, tar_of(tmp_path / "a.tar", files))
    assert image_id == MADE.id
    assert store.get(MADE.id).manifest == digest_of(manifest)
    (tmp_path / "again.tar").write_bytes(saved(store, MADE.id))
    clear(store)
    assert loaded(store, tmp_path / "again.tar") == [(MADE.id, ())]
    assert store.get(MADE.id).manifest == digest_of(manifest)


def test_artifacts_beside_an_image(store: ImageStore, tmp_path: Path) -> None:
    """cosign's signatures are manifests in the same index; alone they are no image. Absolute names are names."""
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
    signature = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": []}).encode()
    files = layout_of(MADE) | {f"blobs/sha256/{digest_of(signature)[7:]}": signature}
    manifests = [Descriptor(MANIFEST, digest_of(data), len(data)).encoded() for data in (signature, MADE.manifest)]
    files["index.json"] = json.dumps({"manifests": manifests}).encode()
    files = {f"/{name}": data for name, data in files.items()}
    assert loaded(store, tar_of(tmp_path / "a.tar", files)) == [(MADE.id, ())]
    files["/index.json"] = json.dumps({"manifests": manifests[:1]}).encode()
    with pytest.raises(ImageError, match=r"is no image's: its configuration is of type 'application/vnd\.oci\.empty"):
        loaded(store, tar_of(tmp_path / "b.tar", files))


# Hostile ones.


def hostile() -> dict[str, tuple[Mapping[str, bytes | str], str]]:
    oci, docker = layout_of(MADE), docker_of()
    [config] = [name for name in docker if name.endswith(".json") and name != "manifest.json"]
    layer, manifest = (f"blobs/sha256/{digest[7:]}" for digest in (MADE.layers[0], digest_of(MADE.manifest)))
    escape = image_of([tape.archive(tape.file(b"../x"))])
    lie = image_of(LAYERS, diff_ids=[digest_of(LAYERS[1]), digest_of(LAYERS[0])])
    return {
        "nothing": ({"x": b"y"}, "there is no image in it"),
        "no images": ({"manifest.json": b"[]"}, "there is no image in it"),
        "no JSON": ({"manifest.json": b"{"}, "manifest.json is no JSON"),
        "no array": ({"manifest.json": b"{}"}, "it is no array of objects"),
        "brackets": ({"manifest.json": b"[" * 100_000}, "manifest.json is no JSON"),
        "a huge manifest": ({"manifest.json": b" " * ((4 << 20) + 1)}, r"manifest.json: it has 4194305 bytes"),
        "many images": ({"manifest.json": b"[" + b"{}," * 1000 + b"{}]"}, "it has 1001 images, 1000 are allowed"),
        "a missing layer": (docker_of(Layers=["0/layer.tar", "nothing"]), "nothing: the archive has no such file"),
        "a path": (docker_of(Layers=["0/layer.tar", "../../../../etc/passwd"]), "etc/passwd: the archive has no such"),
        "an absolute path": (docker_of(Config="/etc/passwd"), "/etc/passwd: the archive has no such file"),
        "no strings": (docker_of(Layers=[5]), "it has no Config or Layers"),
        "a surrogate": (docker_of(Config="\ud800"), "cannot load .*encode"),
        "many layers": (docker_of(Layers=["0/layer.tar"] * 501), "an image of 501 layers, 500 are allowed"),
        "too few layers": (docker_of(Layers=["0/layer.tar"]), "has 1 layers, and its configuration says 2"),
        "a bad name": (docker_of(RepoTags=["../../x"]), r"'\.\./\.\./x' has no valid host"),
        "tags no list": (docker_of(RepoTags="box"), "its RepoTags are no strings"),
        "a link outside": (docker | {"1/layer.tar": "/etc/passwd"}, "1/layer.tar|/etc/passwd: the archive has no such"),
        "a link to itself": (docker | {"1/layer.tar": "../1/layer.tar"}, "it is a link that leads nowhere"),
        "a link to a directory": (docker | {"1/layer.tar": ".."}, "the archive has no such file"),
        "a wrong layer": (docker | {"1/layer.tar": LAYERS[0]}, "1/layer.tar: it is not the layer sha256:"),
        "no layer": (docker | {"1/layer.tar": b"x" * 2000}, "1/layer.tar: this is not a tar archive"),
        "an xz layer": (docker | {"1/layer.tar": lzma.compress(LAYERS[1])}, "packed with bzip2 or xz"),
        "a bad configuration": (docker | {config: b"[]"}, "is no JSON object"),
        "a changed document": (oci | {manifest: b"{}"}, "is not what its name says"),
        "a changed layer": (oci | {layer: MADE.blobs[MADE.layers[0]][:-1] + b"x"}, "it is not what its name says"),
        "a longer layer": (oci | {layer: MADE.blobs[MADE.layers[0]] + b"x"}, "and the manifest says"),
        "a layer that escapes": (layout_of(escape), r"\.\./x \(byte 0\): its name leads above the root"),
        "wrong diff ids": (layout_of(lie), "it is not the layer sha256:"),
        "an index of paths": (oci | {"index.json": b'{"manifests": [{"digest": "../x"}]}'}, "no sha256 digest"),
        "a bad full name": (layout_of(MADE, names=("a//x",)), "is no valid image name"),
        "a foreign platform": (oci | {"index.json": document.encode({"manifests": [
            Descriptor(MANIFEST, digest_of(MADE.manifest), len(MADE.manifest)).encoded()
            | {"platform": {"os": "plan9", "architecture": "mips"}}] * 2})}, "has no image for linux"),
    }  # fmt: skip


HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_one_line_and_leaves_nothing(store: ImageStore, tmp_path: Path, name: str) -> None:
    files, says = HOSTILE[name]
    path = tar_of(tmp_path / "evil.tar", files)
    with pytest.raises(ImageError, match=says) as caught:
        loaded(store, path)
    assert str(caught.value).startswith(f"cannot load {path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert contents(store) == EMPTY


def test_a_member_that_is_there_twice(store: ImageStore, tmp_path: Path) -> None:
    """One reader would see the first, another the second."""
    files = docker_of()
    data = [tape.file(name.encode(), content) for name, content in files.items() if isinstance(content, bytes)]
    (tmp_path / "a.tar").write_bytes(tape.archive(*data, tape.file(b"./1/layer.tar", LAYERS[0])))
    with pytest.raises(ImageError, match=r"1/layer\.tar: the archive has it twice"):
        loaded(store, tmp_path / "a.tar")
    assert contents(store) == EMPTY
    (tmp_path / "a.tar").write_bytes(tape.archive(*data, tape.file(b"./1/layer.tar", LAYERS[1])))
    assert loaded(store, tmp_path / "a.tar") == [(MADE.id, ("box:1",))]


@pytest.mark.parametrize("kind", ["fifo", "directory", "link out", "nothing"])
def test_a_hostile_directory(store: ImageStore, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "layout"
    for name, content in layout_of(MADE).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    layer = place / "blobs/sha256" / MADE.layers[0][7:]
    (tmp_path / "outside").write_bytes(layer.read_bytes())
    layer.unlink()
    if kind == "fifo":
        os.mkfifo(layer)
    elif kind == "directory":
        layer.mkdir()
    elif kind == "link out":
        layer.symlink_to(tmp_path / "outside")
    with pytest.raises(ImageError, match=rf"cannot load {place}: .*{MADE.layers[0][7:]}"):
        loaded(store, place)
    assert contents(store) == EMPTY


@pytest.mark.parametrize("data", [b"", b"hello" * 1000, tape.archive()[:512], gzip.compress(b"x" * 5000)[:-9]])
def test_what_is_no_archive(store: ImageStore, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ImageError, match=f"cannot load {tmp_path}/a.tar: "):
        loaded(store, tmp_path / "a.tar")
    assert contents(store) == EMPTY


def test_a_bomb(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "outer").write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(ImageError, match="larger than the 1048576 bytes"):
        list(load(store, str(tmp_path / "outer"), limits=Limits(total=1 << 20)))
    files = docker_of((tape.archive(tape.file(b"zeros", bytes(8 << 20))),))
    files["0/layer.tar"] = gzip.compress(files["0/layer.tar"])  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="it says it is 8388608 bytes long"):
        list(load(store, str(tar_of(tmp_path / "inner", files)), limits=Limits(total=1 << 20)))
    assert contents(store) == EMPTY


def test_a_full_disk_leaves_nothing(tmp_path: Path, memory_of: Callable[[str], Path]) -> None:
    noise = tape.archive(tape.file(b"noise", os.urandom(1 << 20)))
    path = tar_of(tmp_path / "a.tar", docker_of((noise,)))
    store = ImageStore(f"{memory_of('256k')}/images")
    with pytest.raises(ImageError, match=f"no space is left at {store.root}; free some"):
        loaded(store, path)
    assert contents(store) == EMPTY


def test_killed_before_each_step_of_a_load(store: ImageStore, tmp_path: Path) -> None:
    """The image is there whole or not at all, and nothing else is left."""
    add(store, "old", image_of(LAYERS[:1]))
    before = contents(store)
    path = tar_of(tmp_path / "a.tar", docker_of())
    step, status, seen = 0, -signal.SIGKILL, set()
    while status == -signal.SIGKILL:
        step += 1

        def kill(number: int, last: int = step) -> None:
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)

        def work() -> None:
            steps.before_each_step(lambda: loaded(store, path), kill, within=[IMAGES], each_way=False)

        status = in_child(work).wait()
        again = ImageStore(store.root)
        seen.add(len(again.list()))
        if len(again.list()) == 2:
            assert len(again.get("box:1").blobs) == 2
            again.remove("box:1")
        assert contents(again) == before
    assert status == 0
    assert seen == {1, 2}
    assert step > 100, "the steps were not seen"


# Other tools.


def tool(*words: object) -> None:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{words}: {done.stderr}"


@pytest.mark.needs("program:skopeo")
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_what_skopeo_makes_of_ours_comes_back(store: ImageStore, tmp_path: Path, form: str) -> None:
    image = add(store)
    (tmp_path / "ours.tar").write_bytes(saved(store, "box:1"))
    there = tmp_path / "theirs"
    tool("skopeo", "copy", f"docker-archive:{tmp_path}/ours.tar:docker.io/library/box:1", f"{form}:{there}:box:1")
    clear(store)
    [(_, names)] = loaded(store, there)
    assert names == ("box:1",)
    assert store.get("box:1").layers == image.layers
    assert store.get("box:1").config == image.config


@pytest.mark.needs("program:skopeo")
@pytest.mark.parametrize("docker", [True, False], ids=["docker", "oci"])
def test_skopeo_reads_our_layout_and_keeps_its_digests(store: ImageStore, tmp_path: Path, docker: bool) -> None:
    image = add(store)
    (tmp_path / "ours.tar").write_bytes(saved(store, "box:1", docker=docker))
    tool("skopeo", "copy", f"oci-archive:{tmp_path}/ours.tar:1", f"dir:{tmp_path}/out")
    assert digest_of((tmp_path / "out/manifest.json").read_bytes()) == image.manifest


@pytest.mark.needs("program:skopeo")
def test_docker_schema_2_stays_what_it_is(store: ImageStore, tmp_path: Path) -> None:
    made = image_of(LAYERS, docker=True)
    add(store, made=made, media_type=DOCKER_MANIFEST)
    (tmp_path / "ours.tar").write_bytes(saved(store, "box:1"))
    tool("skopeo", "copy", f"docker-archive:{tmp_path}/ours.tar:docker.io/library/box:1", f"dir:{tmp_path}/out")
    assert json.loads((tmp_path / "out/manifest.json").read_bytes())["config"]["digest"] == made.id


@pytest.mark.needs("program:umoci")
def test_umoci_unpacks_ours_and_we_load_what_it_changed(store: ImageStore, tmp_path: Path) -> None:
    image = add(store)
    layout = tmp_path / "layout"
    save.directory(store, save.choose(store, ["box:1"]), str(layout))
    tool("umoci", "unpack", "--image", f"{layout}:1", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/etc/b").read_bytes() == b"b" * 100_000
    assert not (tmp_path / "bundle/rootfs/gone").exists()
    (tmp_path / "bundle/rootfs/new").write_text("n")
    tool("umoci", "repack", "--image", f"{layout}:2", tmp_path / "bundle")
    tool("umoci", "rm", "--image", f"{layout}:1")
    clear(store)
    [(image_id, names)] = loaded(store, layout)
    assert names == ("box:1",)  # umoci keeps annotations
    assert store.get(image_id).layers[:2] == image.layers
    assert len(store.get(image_id).layers) == 3


def test_a_layout_that_is_our_own_store(store: ImageStore, tmp_path: Path) -> None:
    """A store is a layout: another one's can be loaded as it is."""
    image = add(store)
    shutil.copytree(store.root, tmp_path / "copy")
    clear(store)
    assert loaded(store, tmp_path / "copy") == [(image.id, ("box:1",))]
