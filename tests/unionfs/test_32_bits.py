"""Programs whose offsets and inode numbers have 32 bits, as those of i386 containers: a real one, `compat.c`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounting import Union
from tests.trees import HardLink, Symlink, Tree, build
from unionfs.linux import mounts

pytestmark = [pytest.mark.needs("fuse", "trusted-xattr", "tmpfs")]

EOVERFLOW = 75
TREE: Tree = {"d": {"f": "x", "g": HardLink("f"), "sub": {}}, "f": "y", "l": Symlink("f")}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("gcc")
    if compiler is None or os.uname().machine != "x86_64":
        pytest.skip("gcc for x86 is not installed")
    path = tmp_path_factory.mktemp("compat") / "program"
    source = Path(__file__).with_name("compat.c")
    flags = ["-m32", "-nostdlib", "-static", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector", "-O1"]
    made = subprocess.run([compiler, *flags, "-o", path, source], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"gcc makes no program of 32 bits: {made.stderr.strip().splitlines()[-1]}")
    try:
        subprocess.run([path], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this kernel runs no program of 32 bits: {error}")
    return str(path)


def seen(program: str, directory: str) -> tuple[dict[str, int], list[int]]:
    """The numbers that the program sees in a directory, and the errors that it meets. Whatever it was given is checked:
    every way of listing gives the same, each entry's number is its status's, and goes on from each offset."""
    told = subprocess.run([program, directory], check=True, capture_output=True, text=True).stdout
    lines: dict[str, list[list[str]]] = {kind: [] for kind in ("entry", "next", "wide", "old", "stat", "fails")}
    for line in told.splitlines():
        kind, *words = line.split(" ")
        lines[kind].append(words)
    failed = [int(number, 16) for number, *_ in lines["fails"]]
    if not failed:
        entries = [(name, int(ino, 16), int(offset, 16)) for ino, offset, name in lines["entry"]]
        names = [name for name, *_ in entries]
        assert len(names) == len(set(names))
        assert not lines["wide"]
        assert all(0 < offset < 1 << 31 for *_, offset in entries)
        assert [name for _, name in lines["next"]] == [*names[1:], ""], "from each offset the rest"
        assert [(name, int(ino, 16)) for ino, _, name in lines["old"]] == [entry[:2] for entry in entries]
        # Of a mount's root `..` is itself in a listing, and the directory above the mount point else.
        assert {(name, int(ino, 16)) for ino, name in lines["stat"] if name != ".."} == {
            (name, ino) for name, ino, _ in entries if name != ".."
        }
        assert set(names) == {".", "..", *os.listdir(directory)}
    return {name: int(ino, 16) for ino, name in lines["stat"]}, failed


def numbers_of(directory: str) -> dict[str, int]:
    return {name: os.lstat(os.path.join(directory, name)).st_ino for name in (".", *os.listdir(directory))}


def check(program: str, directory: str) -> None:
    found, failed = seen(program, directory)
    assert not failed
    assert numbers_of(directory).items() <= found.items()


def change(path: str) -> None:
    """Copies, new files, and a directory that is copied up whole."""
    Path(f"{path}/d/f").write_text("new")
    os.chmod(f"{path}/f", 0o600)
    os.lchown(f"{path}/l", 3, 3)
    Path(f"{path}/new").touch()
    os.mkdir(f"{path}/newer")
    os.rename(f"{path}/d", f"{path}/e")
    os.link(f"{path}/new", f"{path}/e/linked")


def test_on_one_file_system(mount_union: Callable[..., Union], tmp_path: Path, program: str) -> None:
    build(str(tmp_path / "low"), TREE)
    union = mount_union("low", "up")
    check(program, union.path)
    check(program, f"{union.path}/d")
    change(union.path)
    for directory in ("", "/e", "/e/sub", "/newer"):
        check(program, union.path + directory)
    before = numbers_of(union.path)
    union.remount()
    check(program, union.path)
    assert numbers_of(union.path) == before


def test_many_entries(mount_union: Callable[..., Union], tmp_path: Path, program: str) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "up").mkdir()
    for number in range(2000):
        (tmp_path / ("up" if number % 5 == 0 else "low") / f"file{number}").touch()
    check(program, mount_union("low", "up").path)


def test_layers_that_share_inodes(mount_union: Callable[..., Union], tmp_path: Path, program: str) -> None:
    """Made with `cp -al`: the second file goes by a number that it does not have in its branch."""
    build(str(tmp_path), {"middle": {"t": {"x": "X"}}, "low": {"b": {"y": HardLink("../../middle/t/x")}}})
    union = mount_union("low", "middle=ro", "up")
    with open(f"{union.path}/t/x"):
        check(program, f"{union.path}/t")
        check(program, f"{union.path}/b")
        assert os.stat(f"{union.path}/t/x").st_ino != os.stat(f"{union.path}/b/y").st_ino


@pytest.fixture
def other(tmp_path: Path) -> Iterator[str]:
    """`other`, a file system of its own."""
    (tmp_path / "other").mkdir()
    mounts.mount("other", str(tmp_path / "other"), "tmpfs")
    try:
        yield "other"
    finally:
        mounts.umount2(str(tmp_path / "other"))


@pytest.mark.parametrize("xino", ["auto", "off"])
def test_on_two_file_systems(
    other: str, mount_union: Callable[..., Union], tmp_path: Path, program: str, xino: str
) -> None:
    build(str(tmp_path / "low"), TREE)
    build(str(tmp_path / other / "middle"), {"f": "over", "m": {"x": ""}})
    union = mount_union("low", f"{other}/middle=ro", f"{other}/up", options=(f"xino={xino}",))
    try:
        check(program, union.path)
        change(union.path)
        for directory in ("", "/e", "/m", "/newer"):
            check(program, union.path + directory)
        before = numbers_of(union.path)
        union.remount()
        assert numbers_of(union.path) == before
        check(program, f"{union.path}/e")
    finally:
        union.close()


def test_what_is_told_to_be_of_64_bits(
    other: str, mount_union: Callable[..., Union], tmp_path: Path, program: str
) -> None:
    """With xino=on, and so that this test sees what the others look for."""
    build(str(tmp_path / "low"), TREE)
    union = mount_union("low", f"{other}/up", options=("xino=on",))
    try:
        Path(f"{union.path}/new").touch()
        assert os.stat(f"{union.path}/new").st_ino >> 48 == 1
        assert EOVERFLOW in seen(program, union.path)[1]
    finally:
        union.close()
