"""load, save, tag, history, inspect, system df and the prunes; each on an installation of its own."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.api import Mount
from tests.mounting import mounted
from tests.runtime.conftest import IMAGE, Runtime, Terminal, wait_until
from tests.runtime.images.conftest import LAYERS, image_of, receive


@pytest.fixture
def fresh(tmp_path: Path, deadline: None) -> Iterator[Runtime]:
    if os.geteuid() != 0:
        pytest.skip("it needs root")
    runtime = Runtime(tmp_path / "root", tmp_path / "state", "vfs")
    yield runtime
    assert runtime.ids() == []


@pytest.fixture
def box(fresh: Runtime, rootfs_tar: Path) -> Runtime:
    fresh("import", "-c", 'CMD ["cat", "/etc/motd"]', "-c", "ENV A=1", rootfs_tar, "box")
    return fresh


def test_save_and_load(box: Runtime, tmp_path: Path) -> None:
    box("tag", "box", "localhost:5000/me/box:2")
    archive = tmp_path / "a.tar"
    assert box("save", "-o", archive, "box", "localhost:5000/me/box:2") == ""
    assert archive.stat().st_mode & 0o777 == 0o600
    image_id = box("inspect", "-f", "{{.Id}}", "box").strip()
    piped = subprocess.run(box.command("save", "box", "localhost:5000/me/box:2"), stdout=subprocess.PIPE, check=True)
    assert piped.stdout == archive.read_bytes()
    assert [name for name in os.listdir(tmp_path) if name not in ("root", "state")] == ["a.tar"]
    says = "Loaded image: box:latest\nLoaded image: localhost:5000/me/box:2\n"
    for how in ("file", "standard input", "a compressed one"):
        box("rmi", "box", "localhost:5000/me/box:2")
        assert box("images", "-q") == ""
        data = archive.read_bytes()
        if how == "file":
            assert box("load", "-i", archive) == says
        else:
            assert box("load", "-q", stdin=gzip.compress(data, 1) if "compressed" in how else data) == says
        assert box("inspect", "-f", "{{.Id}}", "box").strip() == image_id
    assert box.run("box") == "hello from the image\n"
    box("rmi", "box", "localhost:5000/me/box:2")


def test_save_into_a_directory(box: Runtime, tmp_path: Path) -> None:
    box("save", "--format=oci-dir", "-o", tmp_path / "layout", "box")
    assert "is there already" in box.refused("save", "--format=oci-dir", "-o", tmp_path / "layout", "box", code=1)
    box("rmi", "box")
    assert box("load", "-i", tmp_path / "layout") == "Loaded image: box:latest\n"
    assert [name for name in os.listdir(tmp_path) if name not in ("root", "state")] == ["layout"]


def test_a_failed_save_leaves_the_file_that_was_there(box: Runtime, tmp_path: Path) -> None:
    output = tmp_path / "a.tar"
    output.write_text("precious")
    [blob] = [path for path in (box.root / "images/blobs/sha256").iterdir() if path.stat().st_size > 100_000]
    with open(blob, "r+b") as file:
        file.seek(50_000)
        file.write(b"damage")
    assert "is damaged on disk" in box.refused("save", "-o", output, "box", code=1)
    assert "nothing" in box.refused("save", "-o", output, "nothing")
    assert output.read_text() == "precious"
    assert [name for name in os.listdir(tmp_path) if name not in ("root", "state")] == ["a.tar"]
    assert "No space left on device" in box.refused("save", "-o", "/dev/full", "box", code=1)


def test_no_archive_for_a_terminal(box: Runtime, terminal: Callable[..., Terminal]) -> None:
    for words, says in ((("save", "box"), "does not write an archive to a terminal"), (("load",), "is a terminal")):
        session = terminal(box.command(*words))
        session.expect(says)
        assert session.wait() == 125


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("save",), "at least 1 argument"), (("save", "--format=zip", "a"), "invalid format 'zip'"),
        (("save", "--format=oci-dir", "a"), "a directory needs a name"), (("load", "x"), "takes no arguments"),
        (("tag", "a"), "exactly 2 arguments"), (("history",), "exactly 1 argument"), (("inspect",), "at least 1"),
        (("inspect", "--type=volume", "a"), "invalid type 'volume'"), (("images", "a", "b"), "1 argument at most"),
        (("inspect", "-f", "{{range .X}}", "a"), "only {{.Field}} and {{json .Field}}"),
        (("system", "df", "x"), "takes no arguments"), (("image", "prune", "x"), "takes no arguments"),
        (("image",), "'image' is not a verb"), (("system", "nothing"), "'system' is not a verb"),
    ],
)  # fmt: skip
def test_words_that_make_no_sense(fresh: Runtime, words: tuple[str, ...], says: str) -> None:
    assert says in fresh.refused(*words, code=125)


def test_load_of_what_is_none(fresh: Runtime, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("hello")
    for path in (tmp_path / "a.tar", tmp_path / "nothing", tmp_path):
        assert f"cannot load {path}: " in fresh.refused("load", "-i", path, code=1)
    done = fresh.call("load", stdin=b"")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("runtime: cannot load /dev/stdin: ")


def test_history(fresh: Runtime, tmp_path: Path) -> None:
    _publish(fresh, "box:1")
    titles, *rows = fresh("history", "--no-trunc", "--human=false", "box:1").splitlines()
    assert titles.split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    made = image_of(LAYERS)
    sizes = [str(len(made.blobs[digest])) for digest in made.layers]
    moment = "2020-02-02T02:02:02Z"
    assert [row.split() for row in rows] == [
        [made.id, moment, "step", "1", sizes[1]], ["<missing>", moment, "step", "0", sizes[0]],
    ]  # fmt: skip
    assert fresh("history", "-q", "box:1").split() == [made.id[7:19], "<missing>"]
    assert " years ago " in fresh("history", "box:1")


def _publish(runtime: Runtime, name: str) -> None:
    """An image of two layers, as a pull leaves it."""
    from runtime.images.document import MANIFEST
    from runtime.images.store import ImageStore

    store = ImageStore(str(runtime.root / "images"))
    made = image_of(LAYERS)
    receive(store, made)
    store.publish(made.manifest, MANIFEST, [name], index="sha256:" + "1" * 64)
    store.close()


def test_images_and_their_digests(box: Runtime) -> None:
    _publish(box, "localhost:5000/me/app:1")
    box("tag", "localhost:5000/me/app:1", "other:2")
    digest = "sha256:" + "1" * 64

    def listed(*words: str) -> set[tuple[str, ...]]:
        return {tuple(line.split()[:3]) for line in box("images", *words).splitlines()[1:]}

    app, other = ("localhost:5000/me/app", "1", digest), ("other", "2", "<none>")
    assert listed("--digests") == {app, other, ("box", "latest", "<none>")}
    assert listed("--digests", "localhost:5000/me/app") == listed("--digests", "localhost:5000/me/app:1") == {app}
    assert listed("--digests", "docker.io/library/other") == listed("--digests", "oth*:2") == {other}
    assert listed("other:1") == set()
    assert len(box("images", "-q").split()) == 2
    box("rmi", "localhost:5000/me/app:1")
    assert {row[0] for row in listed()} == {"box", "other"}
    box("rmi", "other:2", "box")


def test_an_image_that_has_only_a_digest(fresh: Runtime, rootfs_tar: Path) -> None:
    _publish(fresh, "app:1")
    fresh("import", rootfs_tar, "app:1")
    rows = [line.split()[:2] for line in fresh("images").splitlines()[1:]]
    assert sorted(rows) == [["app", "1"], ["app", "<none>"]]
    assert "Untagged: app@sha256:111" in fresh("rmi", "app@sha256:" + "1" * 64)
    assert "deleted: sha256:" in fresh("image", "prune", "-f")
    assert len(fresh("images", "-q").split()) == 1


def test_what_an_image_says_does_not_reach_a_terminal(box: Runtime, terminal: Callable[..., Terminal]) -> None:
    """In a file it is as it is."""
    box("run", "--name", "escapes", "--network", "none", "-e", "A=\x1b[2Jone\ntwo", "box", "true")
    words = ("inspect", "-f", "{{.Config.Env}}", "escapes")
    assert "A=\x1b[2Jone\ntwo" in box(*words)
    shown = terminal(box.command(*words))
    assert shown.wait() == 0
    assert b"A=?[2Jone\r\ntwo" in shown.output
    box("rm", "escapes")


def test_inspect(box: Runtime) -> None:
    assert box.call("run", "--name=one", "--network=none", "box", "sh", "-c", "exit 3").returncode == 3
    image, container = json.loads(box("inspect", "box", "one"))
    assert image["RepoTags"] == ["box:latest"]
    assert image["Config"] == {"Cmd": ["cat", "/etc/motd"], "Env": ["A=1"]}
    assert image["RootFS"]["Type"] == "layers"
    assert container["Image"] == image["Id"]
    assert container["Name"] == "/one"
    assert (container["Path"], container["Args"]) == ("sh", ["-c", "exit 3"])
    assert container["State"]["Status"] == "exited"
    assert container["State"]["ExitCode"] == 3
    assert container["State"]["FinishedAt"] >= container["State"]["StartedAt"] > container["Created"] > "2020"
    assert container["HostConfig"]["NetworkMode"] == "none"
    template = "{{.Name}} {{.State.Running}} {{json .Config.Cmd}} {{.Config.Cmd}}"
    assert box("inspect", "-f", template, "one") == '/one false ["sh", "-c", "exit 3"] [sh -c exit 3]\n'
    done = box.call("inspect", "nothing", "one")
    assert done.returncode == 1
    assert done.stderr == "runtime: No such object: nothing\n"
    assert [found["Name"] for found in json.loads(done.stdout)] == ["/one"]
    assert box.call("inspect", "--type=image", "one").returncode == 1
    assert "there is no field .Nothing" in box.call("inspect", "-f", "{{.Nothing}}", "one").stderr
    box("rm", "one")


def test_disk_use_and_what_a_prune_frees(box: Runtime, rootfs_tar: Path) -> None:
    box("import", "-c", "ENV A=2", rootfs_tar, "twin")  # the same layer
    _publish(box, "unused:1")
    box("run", "--name=one", "--network=none", "box", "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x > /big")

    def rows() -> dict[str, list[str]]:
        return {line.split()[0]: line.split() for line in box("system", "df").splitlines()[1:]}

    layer = rootfs_tar.stat().st_size
    table = rows()
    assert table["Images"][1:3] == ["3", "1"]
    assert table["Containers"][1:3] == ["1", "0"]
    assert table["Containers"][-1] == "(100%)"
    # Blob and snapshot of the one layer of both, once.
    assert layer < _bytes(table["Images"][3]) < 3 * layer
    verbose = box("system", "df", "-v")
    assert "SHARED SIZE" in verbose
    assert "one" in verbose
    report = box("system", "prune", "--force")
    assert "Deleted Containers:" in report
    assert "Deleted Images:" not in report
    assert _bytes(report.split()[-1]) > 3_000_000
    assert rows()["Images"][1:3] == ["3", "0"]
    report = box("image", "prune", "-af")
    assert sorted(line for line in report.splitlines() if line.startswith("untagged") and "@" not in line) == [
        "untagged: box:latest", "untagged: twin:latest", "untagged: unused:1",
    ]  # fmt: skip
    assert _bytes(report.split()[-1]) > layer
    assert rows()["Images"][1:4] == ["0", "0", "0B"]
    assert os.listdir(box.root / "drivers/vfs/snapshots") == ["identity"]


def _bytes(text: str) -> float:
    for unit, factor in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("B", 1)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise AssertionError(text)


def test_prune_asks(box: Runtime) -> None:
    box("run", "--name=one", "--network=none", "box", "true")
    for words in (("container", "prune"), ("system", "prune", "-a"), ("image", "prune", "-a")):
        for answer in ("", "n\n", "nonsense\n"):
            done = box.call(*words, stdin=answer)
            assert done.returncode == 1
            assert done.stdout.startswith("WARNING! This will remove")
            assert done.stdout.endswith("Are you sure you want to continue? [y/N] ")
            assert done.stderr == f"runtime: {words[0]} prune has been cancelled\n"
    assert len(box.ids()) == 1
    assert "Total reclaimed space: " in box("container", "prune", stdin="y\n")
    assert box.ids() == []
    assert box("images", "-q")


def test_a_prune_leaves_what_runs(box: Runtime) -> None:
    with box.popen("run", "--rm", "--name=one", "--network=none", "box", "sleep", "100") as process:
        wait_until(lambda: box("ps", "-q").strip(), "the container runs")
        assert box("system", "prune", "-af") == "Total reclaimed space: 0B\n"
        assert len(box.ids()) == 1
        box("rm", "-f", "one")
        process.wait()


_RECEIVE = """
import os, sys
from runtime.images.store import ImageStore
store = ImageStore(sys.argv[1])
with store.receive("sha256:" + "7" * 64, 5000) as incoming:
    incoming.write(b"x" * 4000)
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_pull_leaves(fresh: Runtime) -> None:
    fresh("images")
    with subprocess.Popen(
        [sys.executable, "-c", _RECEIVE, str(fresh.root / "images")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as pull:
        assert pull.stdout is not None
        assert pull.stdout.readline() == b"ready\n"
        assert "Broken Pulls    0       0        4kB    4kB (100%)" in fresh("system", "df")
        assert fresh("system", "prune", "-f") == "Total reclaimed space: 0B\n"  # it is received just now
        pull.send_signal(signal.SIGKILL)
    assert fresh("system", "prune", "-f") == "Total reclaimed space: 4kB\n"
    assert "Broken Pulls" not in fresh("system", "df")


def test_info_counts(box: Runtime) -> None:
    told = box("info")
    assert "\nImages: 1\n" in told
    assert "\n  * vfs: works: " in told


def test_a_prune_takes_the_twin_without_a_name(box: Runtime, tmp_path: Path) -> None:
    """Two manifests of one configuration: the id is that of the other, which has a tag."""
    from runtime.images import document
    from runtime.images.blobs import digest_of
    from runtime.images.document import Descriptor
    from runtime.images.store import ImageStore

    store = ImageStore(str(box.root / "images"))
    image = store.get("box")
    with store.open_blob(image.blobs[0].digest) as file, store.writer() as packed:
        packed.write(gzip.compress(file.read(), 1))
        config = Descriptor(document.CONFIG, image.id, len(store.read(image.id)))
        layer = Descriptor(document.LAYER_GZIP, packed.digest, packed.size)
        manifest = document.encode(document.manifest(config, [layer]))
        twin = store.publish(manifest, document.MANIFEST, [], fresh=[packed])
    assert (twin.id, twin.references) == (image.id, ())
    assert digest_of(manifest) != image.manifest
    assert box.run(image.id, "echo", "x") == "x\n"
    assert f"deleted: {image.id}" in box("image", "prune", "-f")
    assert [each.references for each in store.list()] == [("box:latest",)]
    assert box.run("box", "echo", "x") == "x\n"


def test_an_image_is_not_removed_under_a_container_in_the_making(box: Runtime) -> None:
    """`rmi` between the look at the image and the record of the container: no container comes of it."""
    script = """
import sys
from runtime.engine.containers import create
from runtime.cli import command
unpack = create.unpack
def unpack_and_lose(*given):
    name = unpack(*given)
    assert command([*sys.argv[1:6], *sys.argv[6:7], "rmi", "box"]) == 0
    return name
create.unpack = unpack_and_lose
sys.exit(command([*sys.argv[1:], "run", "--network=none", "box", "true"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *box.command()[3:]], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 125, done.stderr
    assert "there is no image" in done.stderr
    assert box.ids() == []


@pytest.mark.needs("tmpfs")
def test_a_disk_that_is_full_for_a_layout_is_named(runtime: Runtime) -> None:
    with mounted([Mount("tmpfs", "tmpfs", ("size=64k",))]) as memory:
        said = runtime.refused("save", "--format=oci-dir", "-o", f"{memory}/layout", IMAGE, code=1)
        assert said == f"runtime: save failed: {memory}/layout: No space left on device\n"
        assert os.listdir(memory) == []
