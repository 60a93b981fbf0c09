"""The adapter alone: what pyfuse3 gets for what UnionFs says. A real union, no mount."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pyfuse3 = pytest.importorskip("pyfuse3")

from tests.mounting import Union  # noqa: E402
from unionfs.serve.inplace import InPlace  # noqa: E402
from unionfs.serve.pyfuse import UnionOperations  # noqa: E402
from unionfs.union.branch import Branch  # noqa: E402
from unionfs.union.fs import UnionFs  # noqa: E402

pytestmark = pytest.mark.needs("root")

BAD_NODE = 123456789
CALLER = SimpleNamespace(uid=7, gid=8, pid=1, umask=0o027)


def answer(request: Any) -> Any:
    """Run a handler that stays on the loop's thread, as pyfuse3 would: it must not wait for anything."""
    with pytest.raises(StopIteration) as done:
        request.send(None)
    return done.value.value


def refusal(request: Any) -> int:
    with pytest.raises(pyfuse3.FUSEError) as refused:
        request.send(None)
    code: int = refused.value.errno
    return code


class Failing(UnionFs):
    """A union that meets `error` in some of its operations."""

    error: BaseException = OSError(errno.ENOSPC, "full")

    def lookup(self, parent: int, name: bytes) -> Any:
        if name == b"bad":
            raise self.error
        return super().lookup(parent, name)

    def forget(self, counts: Any) -> None:
        if list(counts) == [(BAD_NODE, 1)]:
            raise self.error
        super().forget(counts)

    def list_plus(self, ino: int, cookie: int, most: int) -> Any:
        entries = super().list_plus(ino, cookie, most)
        for number, entry in enumerate(entries):
            if entry[0] == b"poisoned":
                super().forget((attr.number, 1) for name, attr, _ in entries[number:])
                if number == 0:
                    raise self.error
                return entries[:number]
        return entries


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[Failing]:
    for name in ("low", "up"):
        (tmp_path / name).mkdir()
    (tmp_path / "low" / "file").write_bytes(b"content")
    union = Failing([Branch.open(os.fsencode(tmp_path / "up"), "rw"), Branch.open(os.fsencode(tmp_path / "low"), "ro")])
    yield union
    union.close()


@pytest.fixture
def operations(fs: Failing) -> UnionOperations:
    return UnionOperations(fs, contextlib.nullcontext(), InPlace())


def test_what_turns_slow_is_done_again_in_a_thread(tmp_path: Path) -> None:
    """And there it goes on."""
    trio = pytest.importorskip("trio")
    in_place = InPlace()
    threads: list[int] = []

    class Slow(UnionFs):
        def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Any:
            threads.append(threading.get_ident())
            self._stack.waiting.begins()
            return super().mkdir(parent, name, mode, uid, gid)

    (tmp_path / "up").mkdir()
    with contextlib.closing(Slow([Branch.open(os.fsencode(tmp_path / "up"), "rw")], waiting=in_place)) as fs:
        operations = UnionOperations(fs, contextlib.nullcontext(), in_place)
        trio.run(operations.mkdir, 1, b"d", 0o755, CALLER)
        trio.run(operations.getattr, 1, CALLER)
        fs._stack.waiting.begins()  # outside of an operation nothing can be undone
    assert threads[0] == threading.get_ident() != threads[1]
    assert len(threads) == 2
    assert (tmp_path / "up" / "d").is_dir()


def test_an_entry_is_kept_for_ever(operations: UnionOperations, tmp_path: Path) -> None:
    entry = answer(operations.lookup(1, b"file", CALLER))
    real = (tmp_path / "low" / "file").stat()
    assert (entry.entry_timeout, entry.attr_timeout) == (1 << 30, 1 << 30)
    assert (entry.st_mode, entry.st_size, entry.st_nlink) == (real.st_mode, 7, 1)
    assert (entry.st_mtime_ns, entry.st_blocks) == (real.st_mtime_ns, real.st_blocks)
    assert answer(operations.getattr(entry.st_ino, CALLER)).st_ino == entry.st_ino


def test_a_missing_name_is_kept_for_ever(operations: UnionOperations) -> None:
    entry = answer(operations.lookup(1, b"absent", CALLER))
    assert (entry.st_ino, entry.entry_timeout) == (0, 1 << 30)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (FileNotFoundError(errno.ENOENT, "gone"), errno.ENOENT),
        (pyfuse3.FUSEError(errno.ENOSYS), errno.ENOSYS),
        (OSError("without a number"), errno.EIO),
        (KeyError("ours"), errno.EIO),
        (AssertionError("ours"), errno.EIO),
        (RecursionError("ours"), errno.EIO),
        (MemoryError(), errno.EIO),
    ],
)
def test_every_error_has_an_errno(operations: UnionOperations, fs: Failing, error: Exception, code: int) -> None:
    fs.error = error
    assert refusal(operations.lookup(1, b"bad", CALLER)) == code
    assert refusal(operations.forget([(BAD_NODE, 1)])) == code
    assert refusal(operations.getattr(BAD_NODE, CALLER)) == errno.ESTALE


def test_only_what_is_not_foreseen_is_logged_with_its_traceback(
    operations: UnionOperations, fs: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    refusal(operations.lookup(1, b"bad", CALLER))
    assert caplog.records == []
    fs.error = KeyError("ours")
    refusal(operations.lookup(1, b"bad", CALLER))
    [record] = caplog.records
    assert "lookup" in record.getMessage()
    assert record.exc_info


def test_flush_is_asked_once(operations: UnionOperations) -> None:
    assert refusal(operations.flush(1)) == errno.ENOSYS


# Modes of new entries

# A default ACL of u::rwx,g::rwx,o::r-x (linux/posix_acl_xattr.h: version 2, then tag, permissions, id).
DEFAULT_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, 0xFFFFFFFF) for tag, permissions in ((1, 7), (4, 7), (0x20, 5))
)


def test_the_umask_is_ours_to_apply(operations: UnionOperations) -> None:
    made = answer(operations.mkdir(1, b"dir", stat.S_IFDIR | 0o777, CALLER))
    assert stat.S_IMODE(made.st_mode) == 0o750
    _, entry = answer(operations.create(made.st_ino, b"file", stat.S_IFREG | 0o666, os.O_RDWR, CALLER))
    assert stat.S_IMODE(entry.st_mode) == 0o640
    assert (entry.st_uid, entry.st_gid) == (7, 8)
    fifo = answer(operations.mknod(1, b"fifo", stat.S_IFIFO | 0o666, 0, CALLER))
    assert fifo.st_mode == stat.S_IFIFO | 0o640


@pytest.mark.needs("pyfuse3")
def test_a_default_acl_takes_the_place_of_the_umask(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    union = mount_union("l", "u")
    for parent in ("plain", union.path):
        directory = tmp_path / parent / "dir"
        directory.mkdir(parents=True)
        try:
            os.setxattr(directory, "system.posix_acl_default", DEFAULT_ACL)
        except OSError as error:
            pytest.skip(f"no ACLs in the temporary directory: {error.strerror}")
    before = os.umask(0o077)
    try:
        for directory in (tmp_path / "plain" / "dir", Path(union.path, "dir")):
            (directory / "file").touch()
            (directory / "sub").mkdir()
            assert stat.S_IMODE((directory / "file").stat().st_mode) == 0o664, directory
            assert stat.S_IMODE((directory / "sub").stat().st_mode) == 0o775, directory
            assert os.getxattr(directory / "sub", "system.posix_acl_default") == DEFAULT_ACL
        (Path(union.path) / "strict").touch()
        assert stat.S_IMODE((Path(union.path) / "strict").stat().st_mode) == 0o600
    finally:
        os.umask(before)


# Listings


class Listing:
    """What readdir_reply would put into the reply of a request with room for `room` entries."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent: list[tuple[bytes, int]] = []

    def reply(self, token: object, name: bytes, entry: Any, following: int) -> bool:
        assert token is self
        if len(self.sent) == self.room:
            return False
        self.sent.append((name, following))
        return True


def listing(operations: UnionOperations, monkeypatch: pytest.MonkeyPatch, fh: int, offset: int, room: int) -> Listing:
    page = Listing(room)
    monkeypatch.setattr(pyfuse3, "readdir_reply", page.reply)
    answer(operations.readdir(fh, offset, page))
    return page


def test_a_listing_in_pages(operations: UnionOperations, fs: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        answer(operations.create(1, b"n%d" % number, 0o644, os.O_RDWR, CALLER))
    fh = answer(operations.opendir(1, CALLER))
    names: list[bytes] = []
    offset = 0
    while page := listing(operations, monkeypatch, fh, offset, 4).sent:
        names += [name for name, _ in page]
        offset = page[-1][1]
    answer(operations.releasedir(fh))
    assert names[:2] == [b".", b".."]
    assert sorted(names[2:]) == sorted([b"file", *(b"n%d" % number for number in range(10))])
    fs.check_invariants()


def test_an_error_in_a_listing_comes_after_what_was_sent(
    operations: UnionOperations, fs: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries that the kernel has counted must reach it; an error then waits for the next request."""
    answer(operations.mknod(1, b"poisoned", stat.S_IFREG | 0o644, 0, CALLER))
    fh = answer(operations.opendir(1, CALLER))
    sent = listing(operations, monkeypatch, fh, 0, 100).sent
    assert [name for name, _ in sent[:2]] == [b".", b".."]
    assert b"poisoned" not in [name for name, _ in sent]
    monkeypatch.setattr(pyfuse3, "readdir_reply", Listing(100).reply)
    assert refusal(operations.readdir(fh, sent[-1][1], object())) == errno.ENOSPC
