"""diff, commit, export: of running and of ended containers, on every driver."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drivers import diff
from drivers.archive.extract import extract
from runtime.engine.containers import commit as committing
from runtime.engine.containers.container import Container
from runtime.engine.containers.pause import paused
from runtime.engine.containers.store import ContainerStore
from runtime.engine.installation import Installation
from runtime.engine.paths import Paths
from runtime.oci.cgroups import Cgroup
from tests.capabilities import missing
from tests.runtime.conftest import IMAGE, Runtime, Terminal, wait_until
from tests.runtime.containers import layers
from tests.trees import assert_same, read

CHANGE = "echo new >/etc/motd; mkdir -p /srv/a; echo x >/srv/a/f; rm /bin/true; ln /etc/motd /srv/link; mkfifo /srv/p"
TOLD = ["C /bin", "D /bin/true", "C /etc", "C /etc/motd", "A /srv", "A /srv/a", "A /srv/a/f", "A /srv/link", "A /srv/p"]


@contextmanager
def container(runtime: Runtime, script: str, *options: str, image: str = "box") -> Iterator[str]:
    """One that has done `script`, says so and goes on; its id."""
    whole = f"{script}\necho done; exec sleep 600"
    name = runtime("run", "-d", "--network", "none", *options, image, "sh", "-c", whole).strip()
    try:
        wait_until(lambda: runtime("logs", name).startswith("done"), "the script is done")
        yield name
    finally:
        runtime("rm", "-f", name)


def found(runtime: Runtime, name: str) -> Container:
    return ContainerStore(Paths.of(str(runtime.root), str(runtime.state))).get(name)


def test_what_a_container_has_changed(each_driver: Runtime) -> None:
    with container(each_driver, CHANGE) as name:
        assert each_driver("diff", name).splitlines() == TOLD
        each_driver("stop", "-t", "0", name)
        assert each_driver("diff", name).splitlines() == TOLD


def test_names_are_one_line_each(each_driver: Runtime, terminal: Callable[..., Terminal]) -> None:
    """Whatever a container has them be, and wherever they are shown; those that a person reads as they are stay so."""
    script = r"""mkdir /d; cd /d
    for name in 'a\nD etc' '\033[2J' 'tab\t' '\342\200\250line' 'bad\377' 'quote\n"\\'; do
        touch "$(printf "$name")"
    done
    touch 'plain \n"' 'sp ace' 'ä→'"""
    expected = [
        "A /d", r'A "/d/\x1b[2J"', r'A "/d/a\nD etc"', r'A "/d/bad\xff"', r'A /d/plain \n"', r'A "/d/quote\n\"\\"',
        "A /d/sp ace", r'A "/d/tab\t"', "A /d/ä→", r'A "/d/\xe2\x80\xa8line"',
    ]  # fmt: skip
    with container(each_driver, script) as name:
        assert sorted(each_driver("diff", name).splitlines()) == sorted(expected)
        shown = terminal(each_driver.command("diff", name), columns=200)
        assert shown.wait() == 0
        assert sorted(shown.output.decode().splitlines()) == sorted(expected)


def test_a_container_that_did_nothing(each_driver: Runtime) -> None:
    """What the runtime mounts on had to be made there, /etc/hosts say, and is not the container's doing."""
    with container(each_driver, "true", "-v", "/usr:/data/volume", "-v", "/etc/hostname:/data/file") as name:
        assert each_driver("diff", name) == ""
    with container(each_driver, "echo x >/data/beside", "-v", "/usr:/data/volume") as name:
        assert each_driver("diff", name).splitlines() == ["A /data", "A /data/beside"]


def test_what_the_images_links_had_made_is_not_the_containers(
    each_driver: Runtime, rootfs_tar: Path, tmp_path: Path
) -> None:
    """What a dangling link leads to is made to mount on, as what is missing without one."""
    links = {"etc/resolv.conf": "../run/stub", "volumes": "/run/volumes", "srv": "made", "var": "of/old"}
    shutil.copy(rootfs_tar, tmp_path / "tar")
    with tarfile.open(tmp_path / "tar", "a") as archive:
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    each_driver("import", tmp_path / "tar", "linked")
    words = ("-v", "/usr:/volumes/usr", "-v", "/etc/hostname:/srv/file", "-v", "/etc:/var/a")
    script = "echo >/run/beside; sleep 600"
    name = each_driver("run", "-d", "--network=none", *words, "linked", "sh", "-c", script).strip()
    try:
        wait_until(lambda: "beside" in each_driver("exec", name, "ls", "/run"), "it has written")
        assert each_driver("diff", name).splitlines() == ["A /run", "A /run/beside"]
        each_driver("stop", "-t", "0", name)
        assert each_driver("diff", name).splitlines() == ["A /run", "A /run/beside"]
    finally:
        each_driver("rm", "-f", name)
        each_driver("rmi", "linked")


def test_an_image_of_it(each_driver: Runtime) -> None:
    with container(each_driver, CHANGE, "-e", "GREETING=hello", "-w", "/srv") as name:
        image = each_driver("commit", "-m", "a note", "-a", "Ada", "-c", "CMD cat f $GREETING", name, "made:1").strip()
    try:
        assert image.startswith("sha256:")
        script = "cat /etc/motd /srv/a/f; ls /bin/true; pwd; echo $GREETING; stat -c %h /srv/link; ls /srv"
        assert each_driver.run("made:1", "sh", "-c", f"({script}) 2>&1").splitlines() == [
            "new", "x", "ls: /bin/true: No such file or directory", "/srv", "hello", "2", "a", "link", "p",
        ]  # fmt: skip
        history = each_driver("history", "--no-trunc", "made:1")
        assert "a note" in history and "sh -c echo new" in history
        assert len(history.splitlines()) == 3
    finally:
        each_driver("rmi", "made:1")


def test_an_image_on_an_image(runtime: Runtime) -> None:
    """What a commit changed is the next one's image; a container that changed nothing adds no layer."""
    with container(runtime, "echo 1 >/one; rm -r /home") as name:
        runtime("commit", name, "made:1")
    try:
        words = ("run", "-d", "--network", "none", "--name", "second", "made:1", "sh", "-c", "echo 2 >/two")
        done = runtime(*words).strip()
        wait_until(lambda: runtime.status("second").startswith("Exited"), "it ends")
        assert runtime("diff", done).splitlines() == ["A /two"]
        runtime("commit", done, "made:2")
        runtime("rm", done)
        with container(runtime.on("overlay2"), "true") as idle:
            runtime("commit", idle, "made:same")
        assert runtime.run("made:2", "sh", "-c", "cat /one /two; ls -d /home 2>&1; true") == (
            "1\n2\nls: /home: No such file or directory\n"
        )
        assert [len(layers(runtime, f"made:{tag}")) for tag in ("1", "2", "same")] == [2, 3, 1]
    finally:
        for tag in ("1", "2", "same"):
            runtime.call("rmi", f"made:{tag}")


def test_the_same_changes_are_the_same_layer(runtime: Runtime) -> None:
    """Whatever the driver: the layer's digest is that of what was done."""
    made = []
    script = "echo x >/f; rm -r /home; chmod 700 /tmp; mkdir /d; touch -d @5 /f /d"
    for driver in ("fuse-aufs", "overlay2", "vfs"):
        with container(runtime.on(driver), script) as name:
            runtime("commit", name, "same")
        made.append(layers(runtime, "same"))
        runtime("rmi", "same")
    assert made[0] == made[1] == made[2]


def test_what_cannot_be_committed(runtime: Runtime) -> None:
    with container(runtime, "true") as name:
        for words, says in (
            (("commit", "nobody"), "No such container: nobody"),
            (("commit", name, "UPPER"), "UPPER"),
            (("commit", name, "a@sha256:" + 64 * "a"), "digest"),
            (("commit", "-c", "FROM x", name), "'FROM x' is no change"),
            (("diff",), "exactly 1 argument"),
            (("diff", "nobody"), "No such container: nobody"),
            (("export", "nobody"), "No such container: nobody"),
            (("export", name, "-o", "/nowhere/at/all"), "/nowhere/at: No such file"),
        ):
            assert says in runtime.refused(*words)
        images = runtime("images", "-q").split()
        anonymous = runtime("commit", name).strip()
        assert len(runtime("images", "-q").split()) == len(images) + 1
        runtime("rmi", anonymous)


def test_a_container_stands_still_while_it_is_committed(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := missing("cgroups"):
        pytest.skip(reason)
    with container(runtime, "true") as name:
        one = found(runtime, name)
        cgroup = Cgroup(one.config.spec["linux"]["cgroupsPath"])
        with paused(one):
            assert cgroup.is_frozen()
        wait_until(lambda: not cgroup.is_frozen(), "it goes on")
        seen: list[bool] = []
        real = diff.write_diff

        def write_diff(*arguments: Any, **named: Any) -> int:
            seen.append(cgroup.is_frozen())
            return real(*arguments, **named)

        monkeypatch.setattr(diff, "write_diff", write_diff)
        with Installation(Paths.of(str(runtime.root), str(runtime.state))) as installation:
            for pause in (True, False):
                committing.commit(installation, one, committing.CommitRequest(pause=pause))
        assert seen == [True, False]
        for image in runtime("images", "-q").split()[:2]:
            runtime.call("rmi", image)
        assert runtime("exec", name, "echo", "alive") == "alive\n"


def test_a_commit_that_is_killed_leaves_the_container_going(runtime: Runtime) -> None:
    if reason := missing("cgroups"):
        pytest.skip(reason)
    with container(runtime, "true") as name:
        one = found(runtime, name)
        cgroup = Cgroup(one.config.spec["linux"]["cgroupsPath"])
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            with paused(one):
                os.write(writer, b"frozen")
                signal.pause()
        try:
            assert os.read(reader, 6) == b"frozen"
            assert cgroup.is_frozen()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)
            os.close(writer)
        wait_until(lambda: not cgroup.is_frozen(), "it goes on")


def test_an_archive_of_the_whole(each_driver: Runtime, tmp_path: Path) -> None:
    """It is what an image can be made of, and other programs read it."""
    with container(each_driver, CHANGE) as name:
        data = subprocess.run(each_driver.command("export", name), capture_output=True, check=True).stdout
        each_driver("export", "-o", tmp_path / "a.tar", name)
        each_driver("stop", "-t", "0", name)
        assert subprocess.run(each_driver.command("export", name), capture_output=True, check=True).stdout == data
    assert (tmp_path / "a.tar").read_bytes() == data
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        assert archive.extractfile("etc/motd").read() == b"new\n"  # type: ignore[union-attr]
        assert archive.getmember("srv/link").linkname == "etc/motd"
    assert "bin/true" not in names and not [name for name in names if ".wh." in name]
    each_driver("import", tmp_path / "a.tar", "exported")
    try:
        assert each_driver.run("exported", "cat", "/srv/a/f") == "x\n"
    finally:
        each_driver("rmi", "exported")


def test_no_archive_to_a_terminal(runtime: Runtime, terminal: Callable[..., Terminal]) -> None:
    opened = terminal(runtime.command("export", "nobody"))
    opened.expect("does not write an archive to a terminal")
    assert opened.wait() == 125


def test_it_is_an_image_for_others(runtime: Runtime, tmp_path: Path) -> None:
    if reason := missing("program:umoci"):
        pytest.skip(reason)
    more = "ln -s a /srv/s; chown 5:6 /srv/p; chmod 4711 /srv/a/f; touch -d @7 /srv/p"
    with container(runtime, f"{CHANGE}; {more}") as name:
        runtime("commit", name, "made")
        runtime("export", "-o", tmp_path / "whole.tar", name)
    ours = tmp_path / "ours"
    ours.mkdir()
    with open(tmp_path / "whole.tar", "rb") as archive:
        root_fd = os.open(ours, os.O_RDONLY)
        extract(archive, root_fd)
        os.close(root_fd)
    try:
        runtime("save", "--format", "oci-dir", "-o", tmp_path / "layout", "made")
        index = json.loads((tmp_path / "layout/index.json").read_bytes())
        tag = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
        command = ["umoci", "unpack", "--image", f"{tmp_path}/layout:{tag}", str(tmp_path / "bundle")]
        subprocess.run(command, check=True, capture_output=True)
        root = tmp_path / "bundle/rootfs"
        # What was made to mount on is in the container's tree, and in no image of it.
        want, got = read(str(ours)), read(str(root))
        for mounted in want.keys() - got.keys():
            assert mounted in ("etc/hosts", "etc/hostname", "etc/resolv.conf")
            del want[mounted]
        assert_same(want, got, "as umoci unpacks it")
        for blob in (tmp_path / "layout/blobs/sha256").iterdir():
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    finally:
        runtime("rmi", "made")


def test_names_as_long_as_can_be(each_driver: Runtime, tmp_path: Path) -> None:
    """An image that removes them from another does so for whoever loads it."""
    names = ["l" * 252, 127 * "ä" + "n", "€" * 85]
    each = f"set -e; mkdir -p /srv/d; cd /srv; for n in {' '.join(names)}; do"
    with container(each_driver, f"{each} echo x >$n; mkdir d/$n; echo x >d/$n/$n; done") as name:
        each_driver("commit", name, "made")
    with container(each_driver, f"{each} rm $n; rm -r d/$n; mkdir d/$n; done", image="made") as name:
        told = each_driver("diff", name).splitlines()
        each_driver("commit", name, "removed")
    expected = [line for n in names for line in (f"D /srv/{n}", f"C /srv/d/{n}", f"D /srv/d/{n}/{n}")]
    assert sorted(told) == sorted(["C /srv", "C /srv/d", *expected])
    each_driver("save", "-o", tmp_path / "removed.tar", "removed")
    each_driver("rmi", "removed", "made")
    each_driver("load", "-i", tmp_path / "removed.tar")
    try:
        found = each_driver.run("removed", "find", "/srv").splitlines()
        assert sorted(found) == sorted(["/srv", "/srv/d", *(f"/srv/d/{n}" for n in names)])
    finally:
        each_driver("rmi", "removed")


def test_a_reader_that_goes_away(each_driver: Runtime) -> None:
    """`runtime export box | head`: what was mounted for it is gone, and nobody complains."""
    with container(each_driver, "true") as box:
        export = each_driver.popen("export", box, stdin=subprocess.DEVNULL)
        assert export.stdout is not None
        export.stdout.read(512)
        export.stdout.close()
        assert export.stderr is not None
        with export.stderr:
            assert (export.stderr.read(), export.wait(timeout=60)) == (b"", 141)


def test_a_container_s_names_do_not_command_the_terminal(
    runtime: Runtime, terminal: Callable[..., Terminal]
) -> None:
    name = "\x1b[2J\nA "
    runtime("run", "--name=writes", "--network=none", IMAGE, "touch", f"/{name}x")
    told = runtime("diff", "writes")
    assert told.startswith('A "/') and told.endswith('[2J\\nA x"\n') and "\x1b" not in told
    assert told.strip() in terminal(runtime.command("diff", "writes")).expect('A x"')
    runtime("rm", "writes")
