"""File content: open flags, reading, writing, truncating, holes, maps."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random

from tests.contracts.posix.case import case, content, fails, in_child, opened, put
from tests.trees import File, Symlink

RECORD = 64


@case({"file": "hello"})
def read_existing(root: str) -> None:
    path = f"{root}/file"
    assert content(path) == b"hello"
    with opened(path, os.O_RDONLY) as fd:
        assert os.pread(fd, 3, 1) == b"ell"
        assert os.pread(fd, 10, 5) == b""
        assert os.pread(fd, 10, 4) == b"o"
        assert os.lseek(fd, -2, os.SEEK_END) == 3
        assert os.read(fd, 10) == b"lo"
        with fails(errno.EBADF):
            os.write(fd, b"x")


@case()
def create_and_write(root: str) -> None:
    path = f"{root}/new"
    with fails(errno.ENOENT):
        os.open(path, os.O_RDWR)
    with opened(path, os.O_CREAT | os.O_RDWR, 0o640) as fd:
        assert os.write(fd, b"first") == 5
        assert os.pread(fd, 100, 0) == b"first"
        assert os.fstat(fd).st_size == 5
    info = os.stat(path)
    assert (info.st_mode & 0o7777, info.st_size, info.st_nlink) == (0o640, 5, 1)
    assert content(path) == b"first"


@case({"file": "0123456789"})
def overwrite_in_the_middle(root: str) -> None:
    with opened(f"{root}/file", os.O_RDWR) as fd:
        assert os.pwrite(fd, b"abc", 3) == 3
        assert os.pread(fd, 100, 0) == b"012abc6789"
    assert content(f"{root}/file") == b"012abc6789"


@case({"file": "start:"})
def append(root: str) -> None:
    with opened(f"{root}/file", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"one")
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"two")
    assert content(f"{root}/file") == b"start:onetwo"


@case({"log": ""})
def append_by_two_writers(root: str) -> None:
    """Records written with O_APPEND by two processes at once neither overlap nor get lost."""
    path = f"{root}/log"
    go_reader, go_writer = os.pipe()
    children = []
    for letter in (b"a", b"b"):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(go_writer)
                with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
                    os.read(go_reader, 1)
                    for _ in range(100):
                        os.write(fd, letter * RECORD)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    os.close(go_reader)
    os.close(go_writer)  # both children are at their read(2), or will find the end of the pipe there
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    data = content(path)
    records = [data[i : i + RECORD] for i in range(0, len(data), RECORD)]
    assert sorted(set(records)) == [b"a" * RECORD, b"b" * RECORD]
    assert records.count(b"a" * RECORD) == records.count(b"b" * RECORD) == 100


@case({"file": "0123456789"})
def truncate_by_path(root: str) -> None:
    path = f"{root}/file"
    os.truncate(path, 4)
    assert content(path) == b"0123"
    os.truncate(path, 8)
    assert content(path) == b"0123\0\0\0\0"
    os.truncate(path, 0)
    assert os.stat(path).st_size == 0
    with fails(errno.EISDIR):
        os.truncate(root, 0)


@case({"file": "0123456789"})
def truncate_by_descriptor(root: str) -> None:
    with opened(f"{root}/file", os.O_RDWR) as fd:
        os.ftruncate(fd, 3)
        assert os.pread(fd, 100, 0) == b"012"
        os.pwrite(fd, b"x", 5)
        assert os.pread(fd, 100, 0) == b"012\0\0x"
    with opened(f"{root}/file", os.O_RDONLY) as fd, fails(errno.EINVAL):
        os.ftruncate(fd, 1)


@case({"file": File("old content", mode=0o600, mtime_ns=10**18)})
def truncate_on_open(root: str) -> None:
    path = f"{root}/file"
    ino = os.stat(path).st_ino
    with opened(path, os.O_WRONLY | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
        assert os.stat(path).st_size == 0
        os.write(fd, b"n")
    info = os.stat(path)
    assert (content(path), info.st_ino, info.st_mode & 0o777) == (b"n", ino, 0o600)
    assert info.st_mtime_ns > 10**18


@case({"file": "x", "link": Symlink("file"), "dangling": Symlink("new")})
def create_exclusively(root: str) -> None:
    for name in ("file", "link", "dangling"):
        with fails(errno.EEXIST):
            os.open(f"{root}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    assert not os.path.lexists(f"{root}/new")
    put(f"{root}/new", b"y", os.O_CREAT | os.O_EXCL)
    with fails(errno.EEXIST):
        os.open(f"{root}/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


@case({"dangling": Symlink("new"), "link": Symlink("file"), "file": "x"})
def create_through_a_symlink(root: str) -> None:
    put(f"{root}/dangling", b"made")
    assert content(f"{root}/new") == b"made"
    put(f"{root}/link", b"y")
    assert (content(f"{root}/file"), os.readlink(f"{root}/link")) == (b"y", "file")


@case({"file": "x", "dir": {}, "link": Symlink("file")})
def open_flags_about_type(root: str) -> None:
    with fails(errno.ENOTDIR):
        os.open(f"{root}/file", os.O_RDONLY | os.O_DIRECTORY)
    with fails(errno.EISDIR):
        os.open(f"{root}/dir", os.O_WRONLY)
    with fails(errno.ELOOP):
        os.open(f"{root}/link", os.O_RDONLY | os.O_NOFOLLOW)
    with fails(errno.ENOTDIR):
        os.open(f"{root}/file/below", os.O_RDONLY)
    with fails(errno.ENOTDIR):
        os.open(f"{root}/file/", os.O_RDONLY)
    with opened(f"{root}/dir", os.O_RDONLY) as fd, fails(errno.EISDIR):
        os.read(fd, 1)


@case()
def a_hole_reads_as_zeros_and_takes_no_space(root: str) -> None:
    path = f"{root}/new"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"end", 8 << 20)
        assert os.pread(fd, 16, 4 << 20) == bytes(16)
        os.fsync(fd)
    info = os.stat(path)
    assert info.st_size == (8 << 20) + 3
    assert info.st_blocks * 512 < 1 << 20


@case({"sparse": File("start", holes=4 << 20)})
def write_into_a_hole(root: str) -> None:
    path = f"{root}/sparse"
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"middle", 2 << 20)
    data = content(path)
    assert (data[:5], data[2 << 20 : (2 << 20) + 6], len(data)) == (b"start", b"middle", 4 << 20)
    assert data.count(0) == len(data) - 11
    assert os.stat(path).st_blocks * 512 < 2 << 20


@case({"big": random.Random(1).randbytes(3_000_001)})
def large_reads_and_writes(root: str) -> None:
    source = random.Random(1).randbytes(3_000_001)
    assert hashlib.sha256(content(f"{root}/big")).digest() == hashlib.sha256(source).digest()
    with opened(f"{root}/new", os.O_CREAT | os.O_RDWR) as fd:
        for offset in range(0, len(source), 300_007):
            os.pwrite(fd, source[offset : offset + 300_007], offset)
    assert content(f"{root}/new") == source
    with opened(f"{root}/big", os.O_RDWR) as fd:
        os.pwrite(fd, b"!", 1_500_000)
    assert content(f"{root}/big") == source[:1_500_000] + b"!" + source[1_500_001:]


@case({"file": "0123456789"})
def vectors(root: str) -> None:
    with opened(f"{root}/file", os.O_RDWR) as fd:
        assert os.writev(fd, [b"ab", b"", b"cd"]) == 4
        buffers = [bytearray(2), bytearray(3)]
        assert os.readv(fd, buffers) == 5
        assert b"".join(buffers) == b"45678"


@case({"from": "0123456789" * 1000})
def copies_in_the_kernel(root: str) -> None:
    with opened(f"{root}/from", os.O_RDONLY) as source, opened(f"{root}/new", os.O_CREAT | os.O_RDWR) as target:
        assert os.copy_file_range(source, target, 10_000) == 10_000
        assert os.sendfile(target, source, 5, 5) == 5
    assert content(f"{root}/new") == b"0123456789" * 1000 + b"56789"


@case({"file": "abc"})
def allocate(root: str) -> None:
    with opened(f"{root}/file", os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 100_000)
        assert os.fstat(fd).st_size == 100_000
    assert content(f"{root}/file") == b"abc".ljust(100_000, b"\0")


@case({"file": "x" * 9000})
def write_through_a_shared_map(root: str) -> None:
    path = f"{root}/file"
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 9000) as view:
        view[5000:5005] = b"hello"
        view.flush()
        assert os.pread(fd, 5, 5000) == b"hello"
    assert content(path) == b"x" * 5000 + b"hello" + b"x" * 3995


@case({"file": "x" * 9000})
def a_private_map_stays_private(root: str) -> None:
    path = f"{root}/file"
    with opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, 9000, mmap.MAP_PRIVATE) as view:
        view[0:5] = b"hello"
    assert content(path) == b"x" * 9000


@case({"file": "old data" + "." * 5000})
def a_read_only_map_sees_writes(root: str) -> None:
    path = f"{root}/file"
    with opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, 5008, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        assert view[:8] == b"old data"
        put(path, b"new", 0)
        assert view[:8] == b"new data"
        in_child(lambda: put(path, b"more", os.O_APPEND))
        assert view[:8] == b"new data"
    assert os.stat(path).st_size == 5012


@case({"file": "old data"})
def a_read_only_descriptor_sees_writes(root: str) -> None:
    path = f"{root}/file"
    with opened(path, os.O_RDONLY) as fd:
        assert os.pread(fd, 100, 0) == b"old data"
        put(path, b"new", 0)
        assert os.pread(fd, 100, 0) == b"new data"
        put(path, b"!", os.O_APPEND)
        assert os.pread(fd, 100, 0) == b"new data!"
        assert os.fstat(fd).st_size == 9
        put(path, b"short")
        assert os.pread(fd, 100, 0) == b"short"


@case({"file": "x"})
def syncing(root: str) -> None:
    with opened(f"{root}/file", os.O_RDWR) as fd:
        os.write(fd, b"y")
        os.fsync(fd)
        os.fdatasync(fd)
    with opened(root, os.O_RDONLY) as fd:
        os.fsync(fd)
    with opened(f"{root}/file", os.O_RDWR | os.O_SYNC) as fd:
        os.write(fd, b"z")
    assert content(f"{root}/file") == b"z"


@case()
def a_duplicate_shares_the_offset(root: str) -> None:
    with opened(f"{root}/new", os.O_CREAT | os.O_RDWR) as fd:
        other = os.dup(fd)
        os.write(fd, b"one")
        os.write(other, b"two")
        os.close(other)
        assert os.pread(fd, 100, 0) == b"onetwo"
