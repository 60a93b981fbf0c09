"""What a diff costs, what a killed one leaves, and trees that no archive can hold."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.api import Form, Mount, Snapshotter
from drivers.archive.errors import ArchiveError
from drivers.archive.extract import extract
from drivers.archive.reader import CHUNK
from drivers.catalog import open_driver
from drivers.diff import Change, changes, forms, layer, snapshots, write_diff, write_tree
from drivers.diff.change import Found
from drivers.diff.compare import is_same
from drivers.diff.walk import differences
from drivers.disk import trees as disk
from drivers.errors import InUse
from drivers.mounts.at_rest import at_rest
from drivers.mounts.attached import mount_all, unmount_all
from drivers.mounts.tree import open_tree, private
from drivers.mounts.union import branches
from tests import trees
from tests.capabilities import missing
from tests.children import in_child
from tests.mounting import mounted, seen


def peak(script: str, *arguments: object) -> int:
    """KiB of memory that a process of its own took at most for `script`."""
    # Not ru_maxrss, which an execve leaves as it was in the process that forked.
    code = f"import os, sys\n{script}\nprint(open('/proc/self/status').read())"
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return next(int(line.split()[1]) for line in said.splitlines() if line.startswith("VmHWM:"))


WRITE = """
from drivers.diff import write_tree
with open(sys.argv[2], "wb") as out:
    write_tree(os.open(sys.argv[1], os.O_RDONLY), out.write)
"""
EXTRACT = """
from drivers.archive.extract import extract
with open(sys.argv[2], "rb") as archive:
    extract(archive, os.open(sys.argv[1], os.O_RDONLY))
"""
COMPARE = """
from drivers.diff.walk import differences
fds = [os.open(path, os.O_RDONLY) for path in sys.argv[1:3]]
assert not list(differences(*fds))
"""


def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    took = []
    for megabytes in (1, 100):
        place = tmp_path / str(megabytes)
        for name in ("source", "target"):
            trees.build(str(place / name), {})
            with open(place / name / "f", "wb") as file:
                for _ in range(megabytes):
                    file.write(b"x" * (1 << 20))
            os.utime(place / name / "f", ns=(0, 10**18))
        took.append((
            peak(COMPARE, place / "source", place / "target"), peak(WRITE, place / "source", place / "a.tar"),
            peak(EXTRACT, place / "target", place / "a.tar"),
        ))  # fmt: skip
        for path in (place / "source/f", place / "target/f", place / "a.tar"):
            path.unlink()
    for small, large in zip(*took, strict=True):
        assert large - small < 8 << 10, took


def test_memory_does_not_grow_with_many_files(memory: Path) -> None:
    """But for the extraction's list of names, which whiteouts may come behind."""
    took = []
    for count in (100, 10_000):
        place = memory / str(count)
        for name in ("source", "target"):
            for start in range(0, count, 100):
                trees.build(f"{place}/{name}/dir-{start}", {f"file-{n}": "" for n in range(start, start + 100)})
        for name in ("source", "target"):
            for top, _, files in os.walk(place / name):
                for file in files:
                    os.utime(f"{top}/{file}", ns=(0, 10**18))
        took.append((peak(WRITE, place / "source", "/dev/null"), peak(COMPARE, place / "source", place / "target")))
    for few, many in zip(*took, strict=True):
        assert many - few < 4 << 10, took


def test_holes_are_not_read(memory: Path) -> None:
    """Two gigabytes of zeros, from a file system that has no room for them."""
    with open(memory / "big", "wb") as file:
        file.truncate(2 << 30)
        file.seek(1 << 30)
        file.write(b"middle")
    size = 0
    found: list[bytes] = []
    zeros = bytes(CHUNK)

    def look(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        if b"middle" in piece[:100]:  # data begins with a page
            found.append(piece)
        else:
            assert len(piece) < CHUNK or piece == zeros

    fd = os.open(memory, os.O_RDONLY)
    try:
        write_tree(fd, look)
    finally:
        os.close(fd)
    assert len(found) == 1
    assert size == 8 * 512 + (2 << 30)


def test_deeper_than_a_path(memory: Path) -> None:
    """A container can nest directories beyond PATH_MAX: it is told, and no archive can have it."""
    fd = os.open(memory, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(300):
        os.mkdir("n" * 20, dir_fd=fd)
        below = os.open("n" * 20, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    root = os.open(memory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = [len(one.path) for one in differences(root, None)]
        assert found == [0, *(21 * level - 1 for level in range(1, 301))]
        with pytest.raises(ArchiveError, match=r"a name of 4116 bytes, 4095 are possible in a layer"):
            write_tree(root, lambda piece: None)
        disk.delete(root, "n" * 20)
    finally:
        os.close(root)


def test_what_is_reserved_is_no_entry(memory: Path) -> None:
    """On a driver of plain trees a container can make names and devices that an archive would turn into whiteouts."""
    trees.build(str(memory), {
        ".wh.victim": "", ".wh..wh..opq": "", ".wh..wh.plnk": {"x": "x"}, "zero": trees.OVERLAY_WHITEOUT, "f": "x",
    })  # fmt: skip
    os.setxattr(memory, "trusted.overlay.opaque", b"y")
    root = os.open(memory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert [one.path for one in differences(root, None)] == [b"", b"f"]
        out = io.BytesIO()
        write_tree(root, out.write)
    finally:
        os.close(root)
    assert b"overlay" not in out.getvalue()


@pytest.mark.parametrize(
    ("form", "marks"),
    [
        ("overlay", {"trusted.overlay.opaque"}),
        ("overlay-userxattr", {"user.overlay.opaque"}),
        ("aufs", {".wh..wh..opq", "trusted.unionfs.opaque", "trusted.overlay.opaque", "user.overlay.opaque"}),
    ],
)
def test_which_marks_make_a_directory_opaque(form: Form, marks: set[str], memory: Path) -> None:
    """Of an overlay only those that its own mount makes, and nobody can make through it."""
    found = set()
    for mark in ("trusted.overlay.opaque", "user.overlay.opaque", "trusted.unionfs.opaque", ".wh..wh..opq"):
        directory = memory / mark
        directory.mkdir()
        if mark.startswith(".wh."):
            (directory / mark).touch()
        else:
            os.setxattr(directory, mark, b"y")
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        if forms.read(fd, form).opaque:
            found.add(mark)
        os.close(fd)
    assert found == marks


def test_a_tree_that_changes_while_it_is_walked(memory: Path) -> None:
    """What vanishes is left out; what is replaced by something else is left out or is what it was."""
    trees.build(str(memory), {"a": {"f": "x", "g": "x"}, "b": {"c": {"f": "x"}}, "d": {"f": "x"}, "e": {}, "z": "x"})
    root = os.open(memory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        walk = differences(root, None)
        found = [next(walk).path, next(walk).path]
        os.unlink(memory / "a/g")
        os.unlink(memory / "b/c/f")
        os.rmdir(memory / "b/c")
        os.rmdir(memory / "b")
        os.unlink(memory / "d/f")
        os.rmdir(memory / "d")
        (memory / "d").write_text("now a file")
        os.rmdir(memory / "e")
        os.symlink("a", memory / "e")
        found += [one.path for one in walk]
    finally:
        os.close(root)
    assert found == [b"", b"a", b"a/f", b"d", b"e", b"z"]


def test_a_file_that_is_replaced_before_it_is_written(memory: Path) -> None:
    """By a link or a fifo: neither is followed, nor waited for. By a device 0:0, which would be a whiteout."""
    trees.build(str(memory), {"a": "x", "b": "x", "c": "x", "secret": "y"})
    root = os.open(memory, os.O_RDONLY | os.O_DIRECTORY)
    names = []
    try:
        for entry, content in layer.members(differences(root, None)):
            names.append(entry.name)
            b"".join(content)
            if len(names) == 1:
                for name in "abc":
                    os.unlink(memory / name)
                os.symlink("secret", memory / "a")
                os.mkfifo(memory / "b")
                os.mknod(memory / "c", stat.S_IFCHR, os.makedev(0, 0))
    finally:
        os.close(root)
    assert names == [b"./", b"a", b"b", b"secret"]


def changing(root: int, path: bytes, change: Callable[[], object]) -> Iterator[Found]:
    """The walk of a tree that changes between the look at `path` and what is done with it."""
    for found in differences(root, None):
        if found.path == path:
            change()
        yield found


def test_a_file_of_several_names_that_is_replaced(memory: Path) -> None:
    """Its other names are not links to what has taken its place."""
    trees.build(str(memory), {"a": "old", "other": "new"})
    os.link(memory / "a", memory / "b")
    os.link(memory / "a", memory / "c")
    root = os.open(memory, os.O_RDONLY | os.O_DIRECTORY)
    found = {}
    try:
        for entry, content in layer.members(changing(root, b"a", lambda: os.rename(memory / "other", memory / "a"))):
            found[entry.name] = entry.linkname or b"".join(content)
    finally:
        os.close(root)
    assert found == {b"./": b"", b"a": b"new", b"b": b"old", b"c": b"b"}


def test_a_link_that_becomes_a_file(memory: Path) -> None:
    """Between a look at it and the reading of its target: it is left out, in the archive and in a comparison."""
    trees.build(str(memory), {
        "new": {"a": trees.Symlink("x"), "b": "y"}, "old": {"a": trees.Symlink("x"), "b": "y"},
    })  # fmt: skip
    os.utime(memory / "new/a", ns=(0, 5), follow_symlinks=False)
    os.utime(memory / "old/a", ns=(0, 5), follow_symlinks=False)
    new, old = (os.open(memory / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("new", "old"))
    try:
        was = [os.stat("a", dir_fd=fd, follow_symlinks=False) for fd in (new, old)]
        (memory / "file").write_text("z")
        entries = layer.members(changing(new, b"a", lambda: os.rename(memory / "file", memory / "new/a")))
        assert [entry.name for entry, _ in entries] == [b"./", b"b"]
        with pytest.raises(OSError, match="Stale"):
            is_same(new, old, b"a", *was)
    finally:
        os.close(new)
        os.close(old)


def test_what_is_mounted_in_a_tree_is_not_the_trees(memory: Path) -> None:
    trees.build(str(memory), {"a": {}, "mounted": {}, "z": "x"})
    with mounted([Mount("tmpfs", "tmpfs", ())]) as other:
        trees.build(other, {"f": "x"})
        mount_all([Mount("bind", other, ("rw",))], str(memory / "mounted"))
        root = os.open(memory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert [one.path for one in differences(root, None)] == [b"", b"a", b"z"]
        finally:
            os.close(root)
            unmount_all(str(memory / "mounted"))


@pytest.fixture
def layered(memory: Path) -> Iterator[Callable[[str], Snapshotter]]:
    """A driver with two layers and an active snapshot, so that a union has to be mounted to see the parent."""
    opened: list[Snapshotter] = []

    def make(name: str) -> Snapshotter:
        if reason := missing({"fuse-aufs": "fuse", "overlay2": "overlay"}.get(name, "root")):
            pytest.skip(reason)
        driver = open_driver(name, str(memory / name))
        opened.append(driver)
        for parent, key in (("", "one"), ("one", "two")):
            with mounted(driver.prepare("writing", parent)) as path:
                trees.build(path, {key: "x"})
            driver.commit(key, "writing")
        driver.prepare("active", "two")
        return driver

    yield make
    for driver in opened:
        driver.close()


@pytest.mark.parametrize("name", ["fuse-aufs", "overlay2", "vfs"])
def test_a_killed_diff_is_taken_back(name: str, layered: Callable[[str], Snapshotter], memory: Path) -> None:
    """Its view of the parent, and what it had mounted. One that still runs is left alone."""
    driver = layered(name)
    reader, writer = os.pipe()

    def hang() -> None:
        mine = open_driver(name, str(memory / name))
        with snapshots.compared(mine, "active"):
            os.write(writer, b"x")
            signal.pause()

    child = in_child(hang)
    try:
        assert os.read(reader, 1) == b"x"
        views = [info.name for info in driver.walk() if info.name.startswith("diff-")]
        assert len(views) == 1
        assert changes(driver, "active") == []
        assert views == [info.name for info in driver.walk() if info.name.startswith("diff-")]
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        os.close(reader)
        os.close(writer)
    assert changes(driver, "active") == []
    assert [info.name for info in driver.walk()] == ["one", "two", "active"]


@pytest.mark.parametrize("name", ["fuse-aufs", "overlay2", "vfs"])
def test_a_tree_that_is_in_use(name: str, layered: Callable[[str], Snapshotter]) -> None:
    """As `diff` of a running container: nothing is let go of, and the mount goes on."""
    driver = layered(name)
    with mounted(driver.mounts("active")) as path, seen(path) as live:
        trees.build(path, {"three": "x"})
        os.unlink(f"{path}/one")
        with open(f"{path}/open", "w") as held:
            held.write("x")
            told = changes(driver, "active", live=live)
            assert told == [Change("D", b"/one"), Change("A", b"/open"), Change("A", b"/three")]
            held.write("y")
        out = io.BytesIO()
        write_diff(driver, "active", out.write, live=live)
        with snapshots.tree(driver, "active", live) as root:
            assert sorted(os.listdir(root)) == ["open", "three", "two"]
        trees.build(path, {"four": "x"})
        assert Change("A", b"/four") in changes(driver, "active", live=live)


@pytest.mark.parametrize("name", ["fuse-aufs", "overlay2", "vfs"])
def test_no_second_union_reads_what_one_writes(name: str, layered: Callable[[str], Snapshotter]) -> None:
    """Whatever mount namespace the first is in; what has one page cache for all mounts of it is read beside it."""
    driver = layered(name)
    with open_tree(driver.mounts("active")) as first:
        if name == "vfs":
            with snapshots.tree(driver, "active") as root:
                assert sorted(os.listdir(root)) == ["one", "two"]
        else:
            with pytest.raises(InUse, match=r"writes to .*: look at it through its mount"):
                snapshots.tree(driver, "active").__enter__()
        os.mkdir("three", dir_fd=first.fd)
    for _ in range(2):
        with snapshots.tree(driver, "active") as root, snapshots.tree(driver, "active") as again:
            assert sorted(os.listdir(root)) == sorted(os.listdir(again)) == ["one", "three", "two"]
            with pytest.raises(OSError, match="Read-only"):
                os.mkdir("four", dir_fd=root)


def test_a_union_at_rest_whatever_its_layers_are_called(tmp_path: Path) -> None:
    """A name may end in what escapes, and have in it what marks a writable branch."""
    names = ["a=rw", "b\\", "c\\=rw", "d:e,f=rw:"]
    for at, name in enumerate(names):
        for top in (name, *names[at + 1 :]):
            trees.build(str(tmp_path / f"{at}" / top), {top: ""})
        stack = [(str(tmp_path / f"{at}" / top), "rw" if top == name else "ro") for top in (name, *names[at + 1 :])]
        mount = Mount("unionfs", "unionfs", (branches(stack), "volatile"))
        with private([at_rest(mount)]) as root:
            assert sorted(os.listdir(root)) == sorted([name, *names[at + 1 :]])
            with pytest.raises(OSError, match="Read-only"):
                os.mkdir("new", dir_fd=root)
        with open_tree([mount]), pytest.raises(InUse):
            at_rest(mount)


def test_a_full_disk_while_a_layer_is_applied(layered: Callable[[str], Snapshotter], memory: Path) -> None:
    driver = layered("vfs")
    with mounted(driver.mounts("active")) as path:
        root = os.open(path, os.O_RDONLY)
        try:
            archive = io.BytesIO()
            trees.build(str(memory / "big"), {"f": os.urandom(20 << 20)})
            source = os.open(memory / "big", os.O_RDONLY)
            write_tree(source, archive.write)
            os.close(source)
            archive.seek(0)
            with open(memory / "rest", "wb") as rest, pytest.raises(OSError, match="No space left"):
                while True:
                    rest.write(bytes(1 << 20))
                    rest.flush()
            with pytest.raises(ArchiveError, match="No space left on device; free some space"):
                extract(archive, root)
        finally:
            os.close(root)
