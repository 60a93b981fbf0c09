"""Locks that are waited for with a bound, and who is said to hold them."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.disk import locks
from drivers.disk.locks import holder, lock, locked
from drivers.errors import TimedOut
from tests.children import Child, in_child


@contextmanager
def held_by_another(take: list[str], path: str) -> Iterator[Child]:
    """A process that holds a lock on the file until the `with` ends: flock(2), "shared" or not, or fcntl's."""
    (ready, tell), (wait, end) = os.pipe(), os.pipe()

    def hold() -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if "fcntl" in take:
            fcntl.lockf(fd, fcntl.LOCK_EX, 8, 120)
        else:
            lock(fd, path, shared="shared" in take)
        os.write(tell, b"x")
        os.read(wait, 1)

    child = in_child(hold)
    try:
        assert os.read(ready, 1) == b"x"
        yield child
    finally:
        os.write(end, b"x")
        assert child.wait() == 0
        for fd in (ready, tell, wait, end):
            os.close(fd)


def named(child: Child) -> str:
    return f"process {child.pid} ({Path(f'/proc/{child.pid}/comm').read_text().strip()})"


def test_who_waits_long_is_told_once_for_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the holder does, where it has written that; of one that was killed nothing is left. What else is in a file
    that is locked is its content."""
    path = str(tmp_path / "lock")
    lines: list[str] = []
    monkeypatch.setattr(locks, "_tell", lambda line: None)
    locks.tell_waits(lines.append)
    monkeypatch.setattr(locks, "SILENCE", 0.0)
    with locked(path, patience=0, purpose="unpacking busybox:1"):
        with pytest.raises(TimedOut, match=r"^waited 0.1 s for process \d+ \(.*\), which is unpacking busybox:1$"):
            with locked(path, patience=0.1):
                pass
        with open(path) as file, pytest.raises(TimedOut):
            lock(file.fileno(), "the file", patience=0.1)
    with locked(path, patience=0), pytest.raises(TimedOut), locked(path, patience=0.1):
        pass
    assert lines == [
        f"waiting for {_this()}, which is unpacking busybox:1",
        f"waiting for the file, which {_this()} is using",
        f"waiting for {path}, which {_this()} is using",
    ]


def _this() -> str:
    return f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"


def test_a_lock_is_waited_for_and_its_holder_named(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with held_by_another([], path) as child:
        for shared in (False, True):
            with pytest.raises(TimedOut) as late, locked(path, shared=shared, patience=0.05):
                pass
            assert str(late.value) == f"waited 0.05 s for {path}, which {named(child)} is using"
        with pytest.raises(TimedOut, match="waited 0 s"), locked(path, patience=0):
            pass
    with locked(path, patience=0):
        pass


def test_a_lock_that_becomes_free_is_taken(tmp_path: Path) -> None:
    """In time, and without the patience that is left."""
    path = str(tmp_path / "lock")
    order: list[str] = []
    inside, done = threading.Event(), threading.Event()

    def first() -> None:
        with locked(path):
            inside.set()
            done.wait()
            order.append("first")

    def second() -> None:
        inside.wait()
        done.set()
        with locked(path, patience=30):
            order.append("second")

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]


def test_readers_share(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with held_by_another(["shared"], path) as child:
        with locked(path, shared=True, patience=0):
            pass
        with pytest.raises(TimedOut, match=f"process {child.pid} "), locked(path, patience=0.01):
            pass


def test_the_lock_file_is_ours_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with locked(str(tmp_path / "lock")) as fd:
            assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    finally:
        os.umask(before)
    os.symlink("elsewhere", tmp_path / "link")
    with pytest.raises(OSError, match="symbolic links"), locked(str(tmp_path / "link")):
        pass


def test_the_holder_of_a_byte(tmp_path: Path) -> None:
    """As sqlite locks: by fcntl, some bytes of a file. A lock of the other kind is not meant."""
    path = str(tmp_path / "file")
    with held_by_another(["fcntl"], path) as child:
        status = os.stat(path)
        for byte in (120, 127):
            assert holder(status, "POSIX", byte) == named(child)
        for byte in (0, 119, 128):
            assert holder(status, "POSIX", byte) == "another process"
        assert holder(status) == "another process"
    assert holder(os.stat(path), "POSIX", 120) == "another process"
