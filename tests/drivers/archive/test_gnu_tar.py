"""Archives that GNU tar makes of real trees: extracted by it and by us, they are the same."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from drivers.archive.decompress import decompress
from drivers.archive.extract import extract
from drivers.archive.validate import validate
from tests.trees import Dir, File, Special, Symlink, Tree, assert_same, build, read

NS = 1_600_000_000_123_456_789
TREE: Tree = {
    "bin": Dir({"su": File("s", mode=0o4755), "ls": File(bytes(range(256)) * 300, mode=0o755)}, mtime_ns=NS),
    "empty": File("", mtime_ns=NS),
    "holes": File("data", holes=1 << 20),
    "owned": File("x", uid=70_000, gid=80_000, mtime_ns=5),
    "nobody": File("x", uid=4_000_000, gid=3_000_000),  # more than seven octal digits
    "tmp": Dir({"sticky": Dir({}, mode=0o1777, mtime_ns=7)}, mode=0o1777),
    "dir": Dir({"deep": {"n" * 120: {"m" * 120: File("long", mtime_ns=NS)}}}, mode=0o2750, uid=3, mtime_ns=9),
    "l" * 99: "99", "l" * 100: "100", "l" * 101: "101", "l" * 255: "255",
    "link": Symlink(target="bin/ls"), "broken": Symlink(target="/nowhere/" + "t" * 150), "up": Symlink(target="../.."),
    "pipe": Special(mode=0o622), "null": Special(type=stat.S_IFCHR, rdev=os.makedev(1, 3), mode=0o666),
    "caf\udce9\n\t'\"\\": "latin one, and what else a name may hold", "ünï": "utf-8",
    "noted": File("x", xattrs={"user.note": b"a\0b\n=%", "user.a=b%": b"c"}, mtime_ns=NS),
    "noted-dir": Dir({}, xattrs={"user.note": b"d"}),
}  # fmt: skip


NEEDS_ZSTD = pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")


def extracted(path: Path, root: Path) -> None:
    root.mkdir()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with decompress(path) as stream:
            done = extract(stream, fd)
        with decompress(path) as stream:
            assert validate(stream) == done
    finally:
        os.close(fd)


def directory_times(path: Path) -> dict[str, int]:
    return {os.path.relpath(top, path): os.lstat(top).st_mtime_ns for top, _, _ in os.walk(path)}


@pytest.mark.parametrize(
    "options",
    [
        ("--format=pax", "--xattrs"), ("--format=posix",), ("--format=gnu",), ("--format=oldgnu",),
        ("--format=gnu", "-z"),
        pytest.param(("--format=gnu", "--zstd"), marks=NEEDS_ZSTD),
    ],
    ids=" ".join,
)
def test_the_same_as_gnu_tar(options: tuple[str, ...], tmp_path: Path) -> None:
    source = build(str(tmp_path / "source"), TREE)
    os.link(f"{source}/bin/ls", f"{source}/bin/dir")
    os.link(f"{source}/link", f"{source}/link-too")
    os.chmod(source, 0o751)
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", "-C", source, *options, "-cf", archive, "."], check=True)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    flags = ["--xattrs"] if "--xattrs" in options else []
    subprocess.run(["tar", "-C", theirs, "--same-owner", "-p", *flags, "-xf", archive], check=True)
    extracted(archive, ours)
    assert_same(read(str(theirs)), read(str(ours)))
    assert directory_times(theirs) == directory_times(ours)
    if flags:
        assert_same(read(source), read(str(ours)))
        assert directory_times(Path(source)) == directory_times(ours)


@pytest.mark.parametrize("options", [("--format=ustar",), ("--format=v7",)], ids=" ".join)
def test_the_old_formats(options: tuple[str, ...], tmp_path: Path) -> None:
    """With what these formats can say: short names, small numbers, no devices in v7."""
    tree: Tree = {
        "d" * 60: Dir({"e" * 30: {"f": File("x", uid=5, mtime_ns=10**9)}}, mode=0o700), "link": Symlink(target="x"),
        "a": File("y" * 513, mode=0o755),
    }  # fmt: skip
    source = build(str(tmp_path / "source"), tree)
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", "-C", source, *options, "--mtime=@1000", "-cf", archive, "."], check=True)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run(["tar", "-C", theirs, "-p", "-xf", archive], check=True)
    extracted(archive, tmp_path / "ours")
    assert_same(read(str(theirs)), read(str(tmp_path / "ours")))


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_pythons_tarfile(format_: int, tmp_path: Path) -> None:
    tree: Tree = {"d": {"n" * 90: "x", "l": Symlink(target="y")}, "e": File("z", mtime_ns=NS)}
    source = build(str(tmp_path / "source"), tree)
    with tarfile.open(tmp_path / "a.tar", "w", format=format_) as out:
        out.add(source, ".")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run(["tar", "-C", theirs, "-p", "-xf", tmp_path / "a.tar"], check=True)
    extracted(tmp_path / "a.tar", tmp_path / "ours")
    assert_same(read(str(theirs)), read(str(tmp_path / "ours")))


SPARSE = [("--format=gnu",), ("--format=pax",), *(("--format=pax", f"--sparse-version=0.{n}") for n in (0, 1))]


@pytest.mark.parametrize("options", SPARSE, ids=" ".join)
def test_sparse_archives(options: tuple[str, ...], tmp_path: Path) -> None:
    """Holes at the beginning, in the middle, at the end; more pieces than one header has room for; long names."""
    source = build(str(tmp_path / "source"), {
        "end": File("data", holes=1 << 20), "all": File("", holes=1 << 23), "plain": "x" * 5000, "n" * 150: "",
    })  # fmt: skip
    for name, count in (("many", 60), ("n" * 150, 3)):
        with open(f"{source}/{name}", "wb") as file:
            for number in range(1, count):
                file.seek(number << 16)
                file.write(b"%d" % number * 1000)
            file.truncate(count << 16)
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", "-C", source, "--sparse", *options, "--mtime=@5", "-cf", archive, "."], check=True)
    assert archive.stat().st_size < 1 << 20
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    extracted(archive, ours)
    theirs.mkdir()
    subprocess.run(["tar", "-C", theirs, "-p", "-xf", archive], check=True)
    assert_same(read(str(theirs)), read(str(ours)))
    for name in ("end", "all", "many"):
        assert os.stat(ours / name).st_blocks <= os.stat(f"{source}/{name}").st_blocks


def test_what_tar_makes_of_a_branch_is_a_layer(tmp_path: Path, root: str) -> None:
    """A writable branch in AUFS form: whiteouts that are hard links of one file, an opaque directory."""
    tree: Tree = {".wh.gone": File("", mode=0o444), "opaque": {".wh..wh..opq": "", "n": "n"}}
    branch = build(str(tmp_path / "branch"), tree)
    os.makedirs(f"{branch}/dir")
    os.link(f"{branch}/.wh.gone", f"{branch}/dir/.wh.gone-too")
    build(root, {"gone": {"x": "x"}, "dir": {"gone-too": "y", "stays": "z"}, "opaque": {"old": "o"}})
    archive = tmp_path / "layer.tar"
    subprocess.run(["tar", "-C", branch, "-cf", archive, "."], check=True)
    fd = os.open(root, os.O_RDONLY)
    try:
        with decompress(archive) as stream:
            extract(stream, fd)
    finally:
        os.close(fd)
    assert sorted(read(root)) == [".", "dir", "dir/stays", "opaque", "opaque/n"]
