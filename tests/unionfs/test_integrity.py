"""A file of a lower branch, changed in every way that the kernel knows, beside a copy in memory: what one way writes
all others read, and so does who mounts it again. As fsx of xfstests does it.

FUSE_AUFS_SEEDS=5,6,7 runs other sequences (scripts/nightly).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounting import Union
from unionfs.linux import libc

pytestmark = pytest.mark.needs("fuse", "trusted-xattr")

SEEDS = [int(seed) for seed in os.environ.get("FUSE_AUFS_SEEDS", "1").split(",")]
STEPS = 600
SIZE, BLOCK = 256 << 10, 4096
# linux/falloc.h
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
# asm/unistd.h: io_setup, io_destroy, io_submit, io_getevents
AIO = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}[os.uname().machine]
PREAD, PWRITE = 0, 1  # IOCB_CMD_*, linux/aio_abi.h

_syscall = libc.bind("syscall", *[ctypes.c_long] * 6, restype=ctypes.c_long)
_fallocate = libc.bind("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


class Aio:
    """Requests that the kernel does beside us (io_submit(2))."""

    def __init__(self) -> None:
        self._context = ctypes.c_ulong(0)
        self._call(0, 8, ctypes.addressof(self._context))

    def do(self, command: int, fd: int, memory: mmap.mmap, at: int) -> int:
        """Read or write the whole of `memory` at an offset; what was done, or minus an errno."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        control = ctypes.create_string_buffer(
            struct.pack("=QIIHhIQQqQII", 0, 0, 0, command, 0, fd, address, len(memory), at, 0, 0, 0)
        )
        pointer = ctypes.c_void_p(ctypes.addressof(control))
        assert self._call(2, self._context.value, 1, ctypes.addressof(pointer)) == 1
        event = ctypes.create_string_buffer(32)
        assert self._call(3, self._context.value, 1, 1, ctypes.addressof(event), 0) == 1
        return int(struct.unpack("=QQqq", event.raw)[2])

    def close(self) -> None:
        self._call(1, self._context.value)

    @staticmethod
    def _call(which: int, *arguments: int) -> int:
        return int(_syscall(AIO[which], *arguments, *[0] * (5 - len(arguments))))


class File:
    """A file by several descriptors, and what must be in it."""

    def __init__(self, path: str, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.wanted = bytearray(Path(path).read_bytes())
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.direct = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        self.aio = Aio()

    def close(self) -> None:
        self.aio.close()
        os.close(self.fd)
        os.close(self.direct)

    def range(self, unit: int = 1) -> tuple[int, int]:
        """An offset and a length within the file, in whole units."""
        units = len(self.wanted) // unit
        if not units:
            return 0, 0
        at = self.random.randrange(units)
        return at * unit, self.random.randint(1, min(units - at, max(1, (32 << 10) // unit))) * unit

    def fill(self, size: int) -> bytes:
        return self.random.randbytes(size)

    # Each way to change it, and to look at it.

    def write(self) -> None:
        at = self.random.randrange(SIZE - 1)
        data = self.fill(self.random.randint(1, min(SIZE - at, 32 << 10)))
        assert os.pwrite(self.fd, data, at) == len(data)
        self._put(at, data)

    def append(self) -> None:
        data = self.fill(self.random.randint(1, 4096))
        if len(self.wanted) + len(data) <= SIZE:
            with open(self.path, "ab", buffering=0) as file:
                file.write(data)
            self._put(len(self.wanted), data)

    def write_directly(self) -> None:
        at, size = self.range(BLOCK)
        if size:
            with mmap.mmap(-1, size) as memory:
                memory[:] = data = self.fill(size)
                assert os.pwritev(self.direct, [memory], at) == size
                self._put(at, data)

    def write_beside(self) -> None:
        at, size = self.range(BLOCK)
        if size:
            memory = mmap.mmap(-1, size)
            memory[:] = data = self.fill(size)
            assert self.aio.do(PWRITE, self.direct, memory, at) == size
            self._put(at, data)

    def write_mapped(self) -> None:
        at, size = self.range()
        if size:
            data = self.fill(size)
            with mmap.mmap(self.fd, len(self.wanted)) as memory:
                memory[at : at + size] = data
                if self.random.random() < 0.5:
                    memory.flush()
            self._put(at, data)

    def truncate(self) -> None:
        size = self.random.randrange(SIZE)
        os.truncate(self.path, size) if self.random.random() < 0.5 else os.ftruncate(self.fd, size)
        self.wanted = self.wanted[:size].ljust(size, b"\0")

    def punch(self) -> None:
        self._allocate(PUNCH_HOLE | KEEP_SIZE)

    def zero(self) -> None:
        self._allocate(ZERO_RANGE | KEEP_SIZE)

    def _allocate(self, mode: int) -> None:
        at, size = self.range()
        if not size:
            return
        try:
            _fallocate(self.fd, mode, at, size)
        except OSError as error:
            assert error.errno in (errno.EOPNOTSUPP, errno.ENOSYS), error
        else:
            self._put(at, bytes(size))

    def copy(self) -> None:
        at, size = self.range()
        to = self.random.randrange(SIZE - size) if size else 0
        if size and (to + size <= at or at + size <= to):  # copy_file_range(2): within a file ranges may not overlap
            data = bytes(self.wanted[at : at + size])
            done = os.copy_file_range(self.fd, self.fd, size, at, to)
            self._put(to, data[:done])

    def sync(self) -> None:
        os.fsync(self.fd)

    def read(self) -> None:
        at, size = self.range()
        assert os.pread(self.fd, size, at) == self.wanted[at : at + size]

    def read_directly(self) -> None:
        at, size = self.range(BLOCK)
        if size:
            with mmap.mmap(-1, size) as memory:
                assert os.preadv(self.direct, [memory], at) == size
                assert memory[:] == self.wanted[at : at + size]

    def read_beside(self) -> None:
        at, size = self.range(BLOCK)
        if size:
            memory = mmap.mmap(-1, size)
            assert self.aio.do(PREAD, self.direct, memory, at) == size
            assert memory[:] == self.wanted[at : at + size]

    def read_mapped(self) -> None:
        if self.wanted:
            with mmap.mmap(self.fd, len(self.wanted), prot=mmap.PROT_READ) as memory:
                assert memory[:] == self.wanted

    def _put(self, at: int, data: bytes) -> None:
        self.wanted.extend(bytes(max(0, at - len(self.wanted))))
        self.wanted[at : at + len(data)] = data


WAYS = [
    name for name in vars(File) if not name.startswith("_") and name not in ("close", "range", "fill")
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_writes_all_read(mount_union: Callable[..., Union], tmp_path: Path, seed: int) -> None:
    before = random.Random(seed).randbytes(SIZE // 2)
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "f").write_bytes(before)
    union = mount_union("low", "up")
    file = File(f"{union.path}/f", seed)
    done: list[str] = []
    try:
        for _ in range(STEPS):
            done.append(way := file.random.choice(WAYS))
            getattr(file, way)()
        assert os.fstat(file.fd).st_size == len(file.wanted)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, after {', '.join(done[-12:])}: {str(error)[:200]}") from None
    finally:
        file.close()
    assert Path(union.path, "f").read_bytes() == file.wanted
    union.remount()
    assert Path(union.path, "f").read_bytes() == file.wanted
    assert (tmp_path / "low" / "f").read_bytes() == before
