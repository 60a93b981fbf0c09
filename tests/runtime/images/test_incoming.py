"""Blobs that are received piece by piece, broken off, gone on with, published, swept."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drivers.errors import TimedOut
from runtime.errors import ImageError, NoSuchImage
from runtime.images import incoming as incoming_module
from runtime.images import index
from runtime.images.blobs import digest_of
from runtime.images.document import MANIFEST
from runtime.images.store import ImageStore
from tests import steps
from tests.children import in_child
from tests.runtime.conftest import wait_until
from tests.runtime.images.conftest import IMAGES, LAYERS, contents, image_of, receive

BLOB = os.urandom(300_000)
DIGEST = digest_of(BLOB)
HEX = DIGEST[7:]
MADE = image_of(LAYERS)


def test_a_pull(store: ImageStore) -> None:
    receive(store, MADE)
    assert not any(store.has(digest) for digest in MADE.blobs)
    name = f"busybox@{digest_of(MADE.manifest)}"
    image = store.publish(MADE.manifest, MANIFEST, ["busybox:1", name])
    assert (image.id, image.manifest, image.media_type) == (MADE.id, digest_of(MADE.manifest), MANIFEST)
    assert image.layers == tuple(map(digest_of, LAYERS))
    assert tuple(blob.digest for blob in image.blobs) == MADE.layers
    assert image.references == tuple(sorted(["busybox:1", name]))
    assert store.read(image.manifest) == MADE.manifest  # byte for byte
    for digest, blob in MADE.blobs.items():
        with store.open_blob(digest) as file:
            assert file.read() == blob
    assert os.listdir(f"{store.root}/incoming") == []
    for text in ("busybox:1", name, f"busybox:other@{digest_of(MADE.manifest)}", image.id[7:19]):
        assert ImageStore(store.root).get(text) == image
    with pytest.raises(NoSuchImage):
        store.get("busybox")


def test_the_digest_of_the_index_that_it_came_from(store: ImageStore) -> None:
    receive(store, MADE)
    index_digest = "sha256:" + "5" * 64
    image = store.publish(MADE.manifest, MANIFEST, ["h:5/a:1"], index=index_digest)
    assert set(image.digests) == {f"h:5/a@{index_digest}", f"h:5/a@{image.manifest}"}
    assert store.get(f"h:5/a@{index_digest}") == store.get("h:5/a:1") == image
    with pytest.raises(NoSuchImage):
        store.get(f"h:5/b@{index_digest}")


@pytest.mark.parametrize("there", [0, 1, 150_000, len(BLOB) - 1])
def test_going_on_where_a_killed_one_stopped(store: ImageStore, there: int) -> None:
    def begin() -> None:
        with ImageStore(store.root).receive(DIGEST, len(BLOB)) as incoming:
            incoming.write(BLOB[:there])
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(begin).wait() == -signal.SIGKILL
    with store.receive(DIGEST, len(BLOB)) as incoming:
        assert incoming.position == there
        incoming.write(BLOB[there:])
        incoming.finish()
        assert incoming.done
        assert incoming.read() == BLOB


@pytest.mark.parametrize("data", [BLOB + b"x", BLOB[:-1] + b"x"], ids=["longer", "other bytes"])
def test_what_a_killed_one_left_may_be_wrong(store: ImageStore, data: bytes) -> None:
    with store.receive(DIGEST, len(BLOB)):
        pass
    Path(store.root, "incoming", HEX).write_bytes(data)
    with store.receive(DIGEST, len(BLOB)) as incoming:
        assert incoming.position == 0
        assert not incoming.done


def test_a_wrong_beginning_is_found_at_the_end(store: ImageStore) -> None:
    with store.receive(DIGEST, len(BLOB)) as incoming:
        incoming.write(b"x" * 1000)
    with store.receive(DIGEST, len(BLOB)) as incoming:
        assert incoming.position == 1000
        incoming.write(BLOB[1000:])
        with pytest.raises(ImageError, match=rf"what came as {DIGEST[:19]} has another digest"):
            incoming.finish()
        assert incoming.position == 0
        incoming.write(BLOB)
        incoming.finish()


def test_a_blob_that_is_cut_short_or_too_long(store: ImageStore) -> None:
    with store.receive(DIGEST, len(BLOB)) as incoming:
        incoming.write(BLOB[:7])
        with pytest.raises(ImageError, match=f"is cut short, {len(BLOB) - 7} bytes are missing"):
            incoming.finish()
        assert incoming.position == 7  # it can be gone on with
        with pytest.raises(ImageError, match=f"is longer than the {len(BLOB)} bytes"):
            incoming.write(BLOB)
        assert incoming.position == 0


@pytest.mark.parametrize("digest", ["", "x", "sha256:../../x", "sha256:" + "A" * 64, "sha512:" + "0" * 128])
def test_no_digest(store: ImageStore, digest: str) -> None:
    with pytest.raises(ValueError, match="is no sha256 digest"), store.receive(digest, 5):
        pass


def test_a_second_process_waits_and_finds_it_done(store: ImageStore) -> None:
    ready, go = os.pipe(), os.pipe()

    def first() -> None:
        with ImageStore(store.root).receive(DIGEST, len(BLOB)) as incoming:
            incoming.write(BLOB[:1000])
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            incoming.write(BLOB[1000:])
            incoming.finish()
            os.close(go[0])

    child = in_child(first)
    assert os.read(ready[0], 1) == b"x"
    second = in_child(lambda: _expect_done(store.root))
    assert second.is_running()
    os.write(go[1], b"x")
    assert [child.wait(), second.wait()] == [0, 0]
    for fd in (*ready, *go):
        os.close(fd)
    assert os.listdir(f"{store.root}/incoming") == [f"{HEX}.whole"]


def _expect_done(root: str) -> None:
    with ImageStore(root).receive(DIGEST, len(BLOB)) as incoming:
        assert incoming.done
        assert incoming.position == len(BLOB)


def test_waiting_has_an_end(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming_module, "PATIENCE", 0.0)
    with store.receive(DIGEST, len(BLOB)):
        says = rf"waited 0 s for the blob {DIGEST[:19]} that is being received, which process {os.getpid()} "
        with pytest.raises(TimedOut, match=says), ImageStore(store.root).receive(DIGEST, len(BLOB)):
            pass


def test_many_receive_the_same_at_once(store: ImageStore) -> None:
    def work() -> None:
        own = ImageStore(store.root)
        for _ in range(5):
            receive(own, MADE)
            own.publish(MADE.manifest, MANIFEST, [f"a{os.getpid()}"])
            own.remove(f"a{os.getpid()}")

    children = [in_child(work) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    last = ImageStore(store.root)
    assert last.list() == []
    last.prune_incoming()
    assert contents(last) == ["blobs", "blobs/sha256", "incoming", "index.json", "oci-layout"]


def test_a_blob_of_another_image_stays_although_that_is_removed(store: ImageStore) -> None:
    receive(store, MADE)
    store.publish(MADE.manifest, MANIFEST, ["a"])
    other = image_of([*LAYERS, LAYERS[0]])
    for digest in MADE.layers:
        with store.receive(digest, len(MADE.blobs[digest])) as incoming:
            assert incoming.done
    ImageStore(store.root).remove("a")
    assert not store.has(MADE.layers[0])
    receive(store, other)
    assert store.publish(other.manifest, MANIFEST, ["b"]).id == other.id
    assert os.listdir(f"{store.root}/incoming") == []


def test_a_sweep_takes_what_nobody_receives(store: ImageStore) -> None:
    with store.receive(DIGEST, len(BLOB)) as incoming:
        incoming.write(BLOB[:1000])
    assert store.incoming_size() == 1000
    other = ImageStore(store.root)
    assert other.prune_incoming() == 0  # `store` may still be about to publish
    assert os.listdir(f"{store.root}/incoming") == [HEX]
    store.close()
    assert other.prune_incoming() == 1000
    assert os.listdir(f"{store.root}/incoming") == []


def test_a_sweep_counts_no_bytes_that_stay(store: ImageStore) -> None:
    receive(store, MADE)
    store.publish(MADE.manifest, MANIFEST, ["a"])
    receive(store, MADE)  # second names of the store's blobs
    assert len(os.listdir(f"{store.root}/incoming")) == 3
    assert store.incoming_size() == 0
    assert store.prune_incoming() == 0
    assert os.listdir(f"{store.root}/incoming") == []
    assert store.get("a")


BAD = {
    "a blob that was not received": (image_of([*LAYERS, b"x" * 512]), "which was removed meanwhile"),
    "another number of layers": (image_of(LAYERS, diff_ids=[digest_of(LAYERS[0])]), "and its configuration another"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_manifest_changes_nothing(store: ImageStore, name: str) -> None:
    made, says = BAD[name]
    receive(store, MADE)
    store.publish(MADE.manifest, MANIFEST, ["a"])
    if "layers" in name:
        receive(store, made)
    before = [name for name in contents(store) if not name.startswith("incoming/")]
    with pytest.raises(ImageError, match=rf"the manifest of a .*{says}"):
        store.publish(made.manifest, MANIFEST, ["a"])
    assert [name for name in contents(store) if not name.startswith("incoming/")] == before
    assert store.get("a").id == MADE.id


def test_a_manifest_that_lies_about_a_size(store: ImageStore) -> None:
    receive(store, MADE)
    size = len(MADE.blobs[MADE.layers[0]])
    lie = MADE.manifest.replace(f'"size": {size}'.encode(), f'"size": {size + 1}'.encode())
    assert lie != MADE.manifest
    with pytest.raises(ImageError, match=f"has {size + 1} bytes, which is wrong"):
        store.publish(lie, MANIFEST, ["a"])
    assert store.list() == []


def test_a_failed_publish_loses_nothing_of_what_was_received(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(store, MADE)

    def full(root: str, changed: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(ImageError, match="no space is left"):
        patched.setattr(index, "save", full)
        store.publish(MADE.manifest, MANIFEST, ["a"])
    assert os.listdir(f"{store.root}/blobs/sha256") == []
    assert store.publish(MADE.manifest, MANIFEST, ["a"]).id == MADE.id


def test_killed_before_each_step_of_a_pull(store: ImageStore) -> None:
    """The image is there whole or not at all, nothing but incoming/ has anything of it, and the next pull succeeds."""
    step, status, seen = 0, -signal.SIGKILL, set()
    while status == -signal.SIGKILL:
        step += 1

        def kill(number: int, last: int = step) -> None:
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)

        def pull() -> None:
            own = ImageStore(store.root)
            receive(own, MADE)
            own.publish(MADE.manifest, MANIFEST, ["a"])

        def work() -> None:
            steps.before_each_step(pull, kill, within=[IMAGES], each_way=False)

        status = in_child(work).wait()
        again = ImageStore(store.root)
        seen.add(len(again.list()))
        if not again.list():
            assert os.listdir(f"{store.root}/blobs/sha256") == []
        if step % 5 == 0 or status == 0:  # a step that follows a step: what is left over of both
            receive(again, MADE)
            image = again.publish(MADE.manifest, MANIFEST, ["a"])
            for digest in (image.manifest, *MADE.blobs):
                again.open_blob(digest).close()
            again.remove("a")
            again.prune_incoming()
            assert not [name for name in contents(again) if "/" in name and name != "blobs/sha256"]
    assert status == 0
    assert seen == {0, 1}
    assert step > 100, "the steps were not seen"


_RECEIVE = """
import sys
from runtime.images.store import ImageStore
root, digest, path = sys.argv[1:]
blob = open(path, "rb").read()
with ImageStore(root).receive(digest, len(blob)) as incoming:
    incoming.write(blob[incoming.position :])
    incoming.finish()
"""


def test_a_file_that_is_swept_under_who_waits_for_it(store: ImageStore, tmp_path: Path) -> None:
    """What the waiting process has open is no longer what has the name, and it begins anew."""
    (tmp_path / "blob").write_bytes(BLOB)
    path = f"{store.root}/incoming/{HEX}"
    with store.receive(DIGEST, len(BLOB)) as incoming:
        incoming.write(BLOB[:1000])
        second = subprocess.Popen([sys.executable, "-c", _RECEIVE, store.root, DIGEST, str(tmp_path / "blob")])
        wait_until(lambda: path in map(_target, Path(f"/proc/{second.pid}/fd").iterdir()), "the second waits")
        os.unlink(path)
    assert second.wait() == 0
    assert Path(f"{path}.whole").read_bytes() == BLOB


def _target(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:
        return ""
