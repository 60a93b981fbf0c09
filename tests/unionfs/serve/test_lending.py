"""Which lower files the kernel reads by itself, and what comes with a first open (unionfs/serve/lending.py)."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounting import Union
from tests.unionfs.inprocess import union as in_process
from tests.unionfs.inprocess import walk
from unionfs.serve.lending import LENDS
from unionfs.serve.passthrough import Passthrough
from unionfs.transport import info
from unionfs.transport.memory import Lent
from unionfs.union.waiting import Waiting

LARGE = 1 << 20
DATA = os.urandom(LARGE)
PROGRAM = b"\x7fELF" + DATA[4:]


@pytest.fixture
def union(tmp_path: Path, mount_union: Callable[..., Union]) -> Iterator[Union]:
    low = tmp_path / "low"
    low.mkdir()
    files = {"data": DATA, "program": PROGRAM, "small": DATA[:5000], "empty": b"", "log": b"first\n"}
    for name, content in files.items():
        (low / name).write_bytes(content)
    yield mount_union("low", "up")
    assert {name: (low / name).read_bytes() for name in files} == files, "the lower layer was written to"


@contextlib.contextmanager
def opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def reads(union: Union) -> int:
    return (info.ask(union.path)["requests"] or {}).get("READ", 0)


@pytest.mark.needs("fuse", "passthrough")
@pytest.mark.parametrize("transport", ["direct"])
def test_who_reads_what(union: Union) -> None:
    """The kernel programs, the server what is no program; small files come with the open, once."""
    for name, asks in {"program": False, "small": False, "empty": False, "data": True}.items():
        before = reads(union)
        for _ in range(3):
            assert len(Path(union.path, name).read_bytes()) == os.stat(f"{union.path}/{name}").st_size
        assert (reads(union) > before) == asks, name
    assert Path(union.path, "small").read_bytes() == DATA[:5000]
    assert Path(union.path, "data").read_bytes() == DATA


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("name", ["data", "small", "empty", "log"])
def test_who_has_it_open_sees_it_change(union: Union, name: str) -> None:
    path = f"{union.path}/{name}"
    before = os.stat(path)
    with opened(path) as reader, opened(path) as another:
        size = len(os.pread(reader, LARGE, 0))
        assert size == before.st_size
        with opened(path, os.O_RDWR) as writer:
            os.pwrite(writer, b"changed", 0)
            assert os.pread(reader, 7, 0) == b"changed"
            os.ftruncate(writer, 3)
        assert os.pread(reader, LARGE, 0) == os.pread(another, LARGE, 0) == Path(path).read_bytes() == b"cha"
        os.truncate(path, 5)
        assert os.pread(another, LARGE, 0) == b"cha\0\0"
        assert os.fstat(reader).st_ino == before.st_ino
        with open(f"/proc/self/fd/{reader}", "wb") as again:
            again.write(b"again")
        assert os.pread(reader, LARGE, 0) == b"again"
    assert Path(path).read_bytes() == b"again"


@pytest.mark.needs("fuse", "program:flock")
def test_locks_are_one(union: Union) -> None:
    """Taken before the first change and after it (flock(1))."""
    path = f"{union.path}/log"
    with opened(path) as holder:
        subprocess.run(["flock", "-n", str(holder)], pass_fds=[holder], check=True)
        with open(path, "a") as writer:
            writer.write("second\n")
        assert subprocess.run(["flock", "-n", path, "true"]).returncode == 1
    subprocess.run(["flock", "-n", path, "true"], check=True)


@pytest.mark.needs("fuse", "program:tail")
def test_a_followed_log_goes_on(union: Union) -> None:
    """tail -F of a log that the image brought."""
    path = f"{union.path}/log"
    follow = ["tail", "-n", "+1", "-s", "0.05", "-F", path]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as tail:
        try:
            assert tail.stdout is not None
            assert tail.stdout.readline() == "first\n"
            for line in ("second\n", "third\n"):
                with open(path, "a") as writer:
                    writer.write(line)
                assert tail.stdout.readline() == line
        finally:
            tail.kill()


@pytest.mark.needs("fuse")
def test_a_database_that_is_being_read_is_not_stale(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    (tmp_path / "low").mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / "low" / "db")) as made, made:
        made.execute("create table t (n)")
        made.execute("insert into t values (1)")
    path = f"{mount_union('low', 'up').path}/db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
        assert reader.execute("select n from t").fetchall() == [(1,)]
        with contextlib.closing(sqlite3.connect(path)) as writer, writer:
            writer.execute("insert into t values (2)")
        assert reader.execute("select n from t").fetchall() == [(1,), (2,)]


class _Waits(Waiting):
    """Tells of the first wait."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def begins(self) -> None:
        self.begun.set()


def test_no_copy_up_comes_between_reading_and_giving(tmp_path: Path) -> None:
    """What the kernel is given is the file's content when it gets it: a change waits until it has."""
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "file").write_bytes(b"old")
    waits = _Waits()
    with in_process(tmp_path, waiting=waits) as fs:
        ino = walk(fs, "file")
        done = threading.Event()

        def change() -> None:
            fs.setattr(ino, size=1)
            done.set()

        changing = threading.Thread(target=change)

        class Kernel(Lent):
            def give(self, number: int, content: bytes) -> None:
                changing.start()
                assert waits.begun.wait(60)
                assert not done.is_set()
                super().give(number, content)

        kernel = Kernel()
        passthrough = Passthrough(fs, kernel, lends=LENDS["programs"], forget_attributes=lambda number: None)
        fh = fs.open(ino, os.O_RDONLY, lazily=True)
        passthrough.open(ino, fh, os.O_RDONLY, 1)
        changing.join()
        assert kernel.given == {ino: b"old"}
        assert fs.read(fh, 0, 10) == b"o"
        fs.release(fh)
        passthrough.close(fh)
        passthrough.check_invariants()
        fs.check_invariants()


def test_what_cannot_be_read_is_left_to_who_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "file").write_bytes(b"content")
    with in_process(tmp_path) as fs:
        ino = walk(fs, "file")
        kernel = Lent()
        passthrough = Passthrough(fs, kernel, lends=LENDS["programs"], forget_attributes=lambda number: None)
        fh = fs.open(ino, os.O_RDONLY, lazily=True)

        def broken(fd: int, size: int, offset: int) -> bytes:
            raise OSError(errno.EIO, "broken")

        monkeypatch.setattr(os, "pread", broken)
        passthrough.open(ino, fh, os.O_RDONLY, 1)
        monkeypatch.undo()
        assert not kernel.given
        assert fs.read(fh, 0, 10) == b"content"
        fs.release(fh)
        passthrough.close(fh)
