from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from drivers.archive.limits import Limits
from drivers.disk import ownership
from runtime.errors import ImageError, ImageInUse, NoSuchImage
from runtime.images import index
from runtime.images.blobs import digest_of
from runtime.images.rootfs import import_rootfs
from runtime.images.store import ImageStore
from tests import steps
from tests.children import in_child
from tests.drivers.archive import tape
from tests.mounting import Union
from tests.runtime.images.conftest import IMAGES, contents
from unionfs.linux import mounts

Archive = Callable[..., str]


def test_an_image(store: ImageStore, archive: Archive) -> None:
    path = archive()
    config = {"Cmd": ["sh"], "Env": ["A=b"]}
    image = import_rootfs(store, path, "busybox", config=config)
    assert image.references == ("busybox:latest",)
    assert image.config == config
    assert image.layers == (digest_of(Path(path).read_bytes()),)
    assert image.size == os.path.getsize(path)
    assert image.created.endswith("Z")
    for name in ("busybox", "busybox:latest", "docker.io/library/busybox", image.id, image.id[7:], image.id[7:19]):
        assert store.get(name) == image
    assert store.list() == [image]
    assert ImageStore(store.root).get("busybox") == image


@pytest.mark.parametrize(("suffix", "module"), [("gz", gzip), ("xz", lzma), ("bz2", bz2)])
def test_the_diff_id_is_of_the_uncompressed_archive(
    suffix: str, module: ModuleType, store: ImageStore, archive: Archive
) -> None:
    path = archive(name=f"a.tar.{suffix}")
    image = import_rootfs(store, path, "a")
    plain = module.decompress(Path(path).read_bytes())
    assert image.layers == (digest_of(plain),)
    with store.open_blob(image.layers[0]) as layer:
        assert layer.read() == plain


def test_the_padding_is_part_of_the_digest(store: ImageStore, tmp_path: Path) -> None:
    data = tape.archive(tape.file(b"a")) + bytes(7000)
    (tmp_path / "a.tar").write_bytes(data)
    assert import_rootfs(store, str(tmp_path / "a.tar"), "a").layers == (digest_of(data),)


def test_a_device_without_end(store: ImageStore) -> None:
    """Its zeros are an empty archive, and its padding."""
    with pytest.raises(ImageError, match="cannot import /dev/zero: more than 16777216 bytes of padding"):
        import_rootfs(store, "/dev/zero", "a")


def test_a_file_name_that_is_no_utf8(store: ImageStore, archive: Archive) -> None:
    path = archive(name=os.fsdecode(b"caf\xe9.tar"))
    image = import_rootfs(store, path, "a", config={"Env": [os.fsdecode(b"A=\xe9")]})
    assert ImageStore(store.root).get("a") == image
    assert image.config["Env"] == [os.fsdecode(b"A=\xe9")]


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("transport", ["pyfuse3"])
def test_a_file_system_without_unnamed_files(mount_union: Callable[..., Union], archive: Archive) -> None:
    store = ImageStore(f"{mount_union('lower', 'upper').path}/images")
    with pytest.raises(ImageError, match=r"has no unnamed files \(O_TMPFILE\); choose another --root"):
        import_rootfs(store, archive(), "a")


def test_it_is_an_oci_image_layout(store: ImageStore, archive: Archive) -> None:
    """Every document is reached from index.json, and every digest and size is right."""
    import_rootfs(store, archive(), "one", config={"Cmd": ["a"]})

    def load(name: str) -> dict[str, object]:
        loaded: dict[str, object] = json.loads(Path(store.root, name).read_bytes())
        return loaded

    def follow(descriptor: dict[str, object]) -> bytes:
        data = Path(store.root, "blobs", *str(descriptor["digest"]).split(":")).read_bytes()
        assert (digest_of(data), len(data)) == (descriptor["digest"], descriptor["size"])
        return data

    assert load("oci-layout") == {"imageLayoutVersion": "1.0.0"}
    manifests = load("index.json")["manifests"]
    assert isinstance(manifests, list)
    [listed] = manifests
    assert listed["annotations"] == {"org.opencontainers.image.ref.name": "one:latest"}
    assert listed["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    manifest = json.loads(follow(listed))
    config = json.loads(follow(manifest["config"]))
    assert [digest_of(follow(layer)) for layer in manifest["layers"]] == config["rootfs"]["diff_ids"]
    assert {config["os"], config["architecture"]} <= {"linux", "amd64", "arm64"}
    assert config["config"] == {"Cmd": ["a"]}


def test_nobody_else_may_look_into_it(store: ImageStore, archive: Archive) -> None:
    """CVE-2021-41091: layers hold set-id files."""
    import_rootfs(store, archive(), "a")
    assert stat.S_IMODE(os.stat(store.root).st_mode) == 0o700
    os.chmod(store.root, 0o755)
    ImageStore(store.root)
    assert stat.S_IMODE(os.stat(store.root).st_mode) == 0o700


def test_a_name_moves_to_the_new_image(store: ImageStore, archive: Archive) -> None:
    first = import_rootfs(store, archive(), "a")
    second = import_rootfs(store, archive({"x": "y"}, "b.tar"), "a")
    third = import_rootfs(store, archive({"x": "z"}, "c.tar"), "b:1")
    assert store.get("a") == second
    assert [image.id for image in store.list()] == [third.id, second.id, first.id]
    assert store.get(first.id).references == ()


def test_two_images_of_one_layer_share_it(store: ImageStore, archive: Archive) -> None:
    path = archive()
    first, second = (import_rootfs(store, path, name, config={"Cmd": [name]}) for name in ("a", "b"))
    assert first.layers == second.layers
    assert first.id != second.id
    assert store.remove("a").deleted == (first.id,)
    store.open_blob(second.layers[0]).close()
    assert store.remove("b").deleted == (second.id, *second.layers)
    assert contents(store) == ["blobs", "blobs/sha256", "index.json", "oci-layout"]


def test_removing(store: ImageStore, archive: Archive) -> None:
    image = import_rootfs(store, archive(), "a")
    with pytest.raises(NoSuchImage, match="there is no image 'b'"):
        store.remove("b")
    with pytest.raises(ImageInUse, match="image a:latest is used by a container"):
        store.remove("a", in_use=lambda: {image.id})
    with pytest.raises(ImageInUse):
        store.remove(image.id[:17], in_use=lambda: {image.id})
    assert store.get("a") == image
    removed = store.remove(image.id[7:19])
    assert removed == (("a:latest",), (image.id, *image.layers))
    with pytest.raises(NoSuchImage):
        store.get("a")
    with pytest.raises(NoSuchImage, match="removed meanwhile"):
        store.open_blob(image.layers[0])


@pytest.mark.parametrize("text", ["nothing", "NOTHING", "a b", "", "sha256:" + "0" * 64, "0000", "../a", "a" * 70000])
def test_unknown_images(text: str, store: ImageStore, archive: Archive) -> None:
    import_rootfs(store, archive(), "a")
    with pytest.raises(NoSuchImage) as caught:
        store.get(text)
    assert "\n" not in str(caught.value)


def test_a_beginning_of_an_id_that_is_not_enough(store: ImageStore, archive: Archive) -> None:
    image = import_rootfs(store, archive(), "a")
    with pytest.raises(NoSuchImage):
        store.get(image.id[7:10])


BAD: dict[str, tuple[bytes | None, str]] = {
    "no file": (None, "No such file or directory"),
    "no archive": (b"hello" * 1000, "this is not a tar archive"),
    "an empty file": (b"", "it is empty"),
    "an empty file, packed": (gzip.compress(b""), "it is empty"),
    "cut short": (tape.archive(tape.file(b"big", b"x" * 5000))[:2000], r"big \(byte 2000\): the archive is cut short"),
    "dotdot": (tape.archive(tape.file(b"../x")), r"\.\./x \(byte 0\): its name leads above the root"),
    "several in one file": (tape.archive(tape.file(b"a")) + tape.archive(tape.file(b"b")), "something follows the end"),
    "a loop": (tape.archive(tape.symlink(b"e", b"e"), tape.file(b"e/x")), "through more than 40 symbolic links"),
    "hard link": (tape.archive(tape.hard_link(b"a", b"../../etc/passwd")), "leads above the root"),
    "device": (tape.archive(tape.header(b"sda", b"3", major=4096)), "it is device 4096:0"),
    "size": (tape.archive(tape.file(b"a", b"x", size=tape.base256(1 << 50, 12))), "it says it is 1125899906842624"),
    "gzip cut short": (gzip.compress(tape.archive(tape.file(b"a")))[:-20], "the gzip data is cut short"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_leaves_nothing(name: str, store: ImageStore, archive: Archive, tmp_path: Path) -> None:
    data, says = BAD[name]
    import_rootfs(store, archive(), "good")
    before = contents(store)
    path = tmp_path / "bad.tar"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ImageError, match=says) as caught:
        import_rootfs(store, str(path), "bad")
    assert str(caught.value).startswith(f"cannot import {path}: ")
    assert "\n" not in str(caught.value)
    assert contents(store) == before


def test_a_bad_name_is_seen_before_the_archive_is_read(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="'Bad' is no valid image name"):
        import_rootfs(store, "/nonexistent", "Bad")


def test_a_bomb_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    subprocess.run(f"head -c 64M /dev/zero | gzip > {tmp_path}/bomb", shell=True, check=True)
    with pytest.raises(ImageError, match="larger than the 1048576 bytes"):
        import_rootfs(store, f"{tmp_path}/bomb", "bomb", limits=Limits(total=1 << 20))
    assert contents(store) == ["blobs", "blobs/sha256"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, archive: Archive) -> None:
    path = archive({"big": os.urandom(1 << 20)})
    target = tmp_path / "small"
    target.mkdir()
    mounts.mount("tmpfs", str(target), "tmpfs", 0, "size=256k")
    try:
        store = ImageStore(f"{target}/images")
        with pytest.raises(ImageError, match=f"no space is left at {target}/images; free some"):
            import_rootfs(store, path, "a")
        assert contents(store) == ["blobs", "blobs/sha256"]
    finally:
        mounts.umount2(str(target))


def test_a_disk_that_is_full_for_the_index_leaves_nothing(
    store: ImageStore, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_rootfs(store, archive(), "old")
    before = contents(store)

    def full(root: str, changed: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(ImageError, match="no space is left"):
        patched.setattr(index, "save", full)
        import_rootfs(store, archive({"x": "y"}, "new.tar"), "new")
    assert contents(store) == before


def test_killed_before_each_step_of_an_import(store: ImageStore, archive: Archive) -> None:
    """The image is there whole or not at all, and opening the store takes the rest away."""
    import_rootfs(store, archive(), "old")
    path = archive({"new": "content"}, "new.tar")
    before = contents(store)
    step, status, seen = 0, -signal.SIGKILL, set()
    while status == -signal.SIGKILL:
        step += 1

        def kill(number: int, last: int = step) -> None:
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)

        def work() -> None:
            steps.before_each_step(lambda: import_rootfs(store, path, "new"), kill, within=[IMAGES])

        status = in_child(work).wait()
        again = ImageStore(store.root)
        try:
            image = again.get("new")
        except NoSuchImage:
            assert contents(again) == before
            seen.add("before")
            continue
        with again.open_blob(image.layers[0]) as layer:
            assert digest_of(layer.read()) == image.layers[0]
        assert image.size == os.path.getsize(path)
        seen.add("after")
        again.remove("new")
        assert contents(again) == before
    assert status == 0
    assert seen == {"before", "after"}
    assert step > 50, "the steps were not seen"


def test_killed_before_each_step_of_a_removal(store: ImageStore, archive: Archive) -> None:
    import_rootfs(store, archive(), "old")
    empty = contents(store)
    path = archive({"new": "content"}, "new.tar")
    step, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        step += 1
        import_rootfs(store, path, "new")

        def kill(number: int, last: int = step) -> None:
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)

        def work() -> None:
            steps.before_each_step(lambda: store.remove("new"), kill, within=[IMAGES])

        status = in_child(work).wait()
        again = ImageStore(store.root)
        if "new:latest" in [name for image in again.list() for name in image.references]:
            again.open_blob(again.get("new").layers[0]).close()
            again.remove("new")
        assert contents(again) == empty
    assert status == 0


def test_many_processes_import_and_remove_at_once(store: ImageStore, archive: Archive) -> None:
    paths = [archive({"x": str(number)}, f"{number}.tar") for number in range(3)]
    import_rootfs(store, archive(), "kept")
    kept = contents(store)

    def work(number: int) -> None:
        for turn in range(10):
            own = ImageStore(store.root)
            image = import_rootfs(own, paths[(number + turn) % 3], f"a{number}")
            own.open_blob(image.layers[0]).close()
            assert own.get(f"a{number}").id == image.id
            assert own.get("kept")
            own.list()
            own.remove(f"a{number}")

    children = [in_child(lambda number=number: work(number)) for number in range(4)]  # type: ignore[misc]
    assert [child.wait() for child in children] == [0, 0, 0, 0]
    assert contents(ImageStore(store.root)) == kept


def test_a_damaged_image_can_be_removed(store: ImageStore, archive: Archive) -> None:
    good = import_rootfs(store, archive({"x": "y"}, "b.tar"), "good")
    image = import_rootfs(store, archive(), "bad")
    with open(f"{store.root}/blobs/sha256/{image.id[7:]}", "ab") as blob:
        blob.write(b" ")
    store = ImageStore(store.root)
    with pytest.raises(ImageError, match=r"image bad:latest: .* is damaged; remove it \(runtime rmi bad:latest\)"):
        store.get("bad")
    assert store.get("good") == good
    store.remove("bad")
    assert store.list() == [good]
    assert len(os.listdir(f"{store.root}/blobs/sha256")) == 3


@pytest.mark.parametrize("text", [
    "", "{", "[]", "{}", '{"manifests": [1]}', '{"manifests": [{"digest": []}]}',
    '{"manifests": [{"digest": 5, "size": 1}]}', '{"manifests": [{"digest": "../../x", "size": 1}]}',
    f'{{"manifests": [{{"digest": "sha256:{64 * "0"}", "size": "1"}}]}}',
])  # fmt: skip
def test_a_damaged_index_is_one_line(text: str, store: ImageStore) -> None:
    Path(store.root, "index.json").write_text(text)
    with pytest.raises(ImageError, match=r"index\.json is damaged; restore it, or remove"):
        ImageStore(store.root).list()


def test_a_lost_index_is_no_empty_one(store: ImageStore, archive: Archive) -> None:
    import_rootfs(store, archive(), "a")
    blobs = store.blob_sizes()
    os.rename(f"{store.root}/index.json", f"{store.root}/elsewhere")
    again = ImageStore(store.root)
    with pytest.raises(ImageError, match=r"index\.json is missing; restore it, or remove"):
        again.list()
    with pytest.raises(ImageError, match=r"index\.json is missing"):
        import_rootfs(again, archive({"x": "y"}, "b.tar"), "b")
    assert again.blob_sizes() == blobs
    os.rename(f"{store.root}/elsewhere", f"{store.root}/index.json")
    assert again.get("a")


def test_documents_cannot_name_other_files(store: ImageStore) -> None:
    """CVE-2014-9358: a digest is a digest before it is a path."""
    Path(store.root, "index.json").write_text(
        json.dumps({"manifests": [{"digest": "sha256:../../../etc/passwd", "size": 1, "annotations": {}}]})
    )
    with pytest.raises(ImageError, match=r"index\.json is damaged"):
        ImageStore(store.root).list()


def test_a_place_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others could put another store there; or the disk with the store is not mounted, and it would be begun anew."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(ImageError, match=f"{home} can be written to by everybody"):
        ImageStore(str(home / "images"))
    home.chmod(0o755)
    table = tmp_path / "fstab"
    table.write_text(f"/dev/sdx1 {home} ext4 defaults 0 2\n")
    monkeypatch.setattr(ownership, "FSTAB", str(table))
    with pytest.raises(ImageError, match=f"nothing is mounted at {home}, where .* has /dev/sdx1"):
        ImageStore(str(home / "images"))
    assert list(home.iterdir()) == []
