"""Records that must outlive the machine: the order of what is done to the disk, and what a failure leaves."""

from __future__ import annotations

import errno
import os
import stat
import sys
from functools import partial
from pathlib import Path

import pytest

from drivers.disk import durable
from tests.children import in_child
from tests.stepping import CALLS, before_each_change
from unionfs.linux import mounts


def steps(code: str, *words: str) -> list[str]:
    """The calls by which a program changes names or waits for the disk, from its sync() on."""
    reader, writer = os.pipe()
    program = f"import os, sys; from drivers.disk import durable; os.sync(); {code}"

    def trace() -> None:
        with open(writer, "w", encoding="ascii") as out:
            command = [sys.executable, "-c", program, *words]
            assert before_each_change(command, lambda name: print(name.removesuffix("at"), file=out)) == 0

    child = in_child(trace)
    os.close(writer)
    with open(reader, encoding="ascii") as lines:
        found = lines.read().split()
    assert child.wait() == 0
    return found[found.index("sync") + 1 :]


@pytest.mark.skipif(not CALLS, reason="the numbers of this machine's system calls are not known here")
def test_content_then_other_names_then_the_name_then_its_directory(tmp_path: Path) -> None:
    code = "durable.replace(sys.argv[1], b'new', first=[sys.argv[2]])"
    assert steps(code, str(tmp_path / "record"), "/tmp") == ["unlink", "fsync", "fsync", "rename", "fsync"]
    assert (tmp_path / "record").read_bytes() == b"new"


@pytest.mark.skipif(not CALLS, reason="the numbers of this machine's system calls are not known here")
def test_a_directory_is_synced_into_each_that_is_made_for_it(tmp_path: Path) -> None:
    code = "durable.make_directories(sys.argv[1], 0o700)"
    assert steps(code, str(tmp_path / "a/b")) == ["mkdir", "fsync", "mkdir", "fsync"]
    assert steps(code, str(tmp_path / "a/b")) == []
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        (tmp_path / "file").touch()
        durable.make_directories(str(tmp_path / "file"))


def test_what_a_killed_writer_left_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("untouched")
    for left in (partial(os.symlink, "elsewhere"), lambda path: path.write_text("longer than the new one")):
        left(tmp_path / "record.new")
        durable.replace(str(tmp_path / "record"), b"new", mode=0o640)
        assert (tmp_path / "record").read_text() == "new"
        assert stat.S_IMODE((tmp_path / "record").stat().st_mode) == 0o640 & ~_umask()
    assert (tmp_path / "elsewhere").read_text() == "untouched"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "record"]


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


@pytest.mark.needs("tmpfs")
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    mounts.mount("tmpfs", str(tmp_path), "tmpfs", 0, "size=64k")
    try:
        path = tmp_path / "record"
        durable.replace(str(path), b"old")
        with pytest.raises(OSError, match=str(path)) as caught:
            durable.replace(str(path), bytes(100_000))
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir(tmp_path) == ["record"]
        assert path.read_bytes() == b"old"
        durable.replace(str(path), b"new")
        assert path.read_bytes() == b"new"
    finally:
        mounts.umount2(str(tmp_path))
