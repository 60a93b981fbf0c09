"""How fast does data go through?

Measured on one file of 128 MiB, as seconds per MiB (shown as MiB/s), by one system call per block into one buffer:
  sequential write           of a new file in the upper directory, 1 MiB blocks, from open to the end of close
  sequential read, cold      of the lower file, 1 MiB blocks: the union was just mounted, and the lower file's pages
                             dropped (posix_fadvise), so the disk's time counts; on tmpfs they are the file, and stay
  sequential read, warm      the same once more
  sequential read, program   both of a file that begins as a program does: a union may treat it otherwise
  random read, fresh mount   of 4 KiB, 4096 of them, each at an offset of its own: the lower file's pages are in the
                             cache, and the union was just mounted
  random read, warm          the same once more

Written data goes to the page cache, as write(2) leaves it, and is flushed between the subjects, outside the clock.

Not measured: mmap, O_DIRECT, fsync, several readers, files larger than memory.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.subjects import flush
from benchmarks.timing import Sample, rotated, seconds
from benchmarks.unions import Mounted, Union, lower_directory

MiB = 1 << 20
BLOCK = MiB
PAGE = 4096
SIZE, QUICK_SIZE = 128 * MiB, 16 * MiB
READS = 4096


# Files of the lower directory, and what each begins with: data, and what elf(5) says that a program does.
KINDS = {"file": b"", "program": b"\x7fELF"}


def fill(directory: str, size: int, names: Sequence[str] = tuple(KINDS)) -> None:
    block = os.urandom(BLOCK)
    for name in names:
        with open(os.path.join(directory, name), "wb", buffering=0) as file:
            for _ in range(size // BLOCK):
                file.write(block)
            os.pwrite(file.fileno(), KINDS[name], 0)


def drop_pages(path: str) -> None:
    """Drop the clean pages of a file from the page cache: posix_fadvise(2), POSIX_FADV_DONTNEED."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def write(path: str, size: int) -> None:
    block = memoryview(os.urandom(BLOCK))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for _ in range(size // BLOCK):
            if os.write(descriptor, block) != BLOCK:
                raise OSError(f"{path}: a short write")
    finally:
        os.close(descriptor)


def read(path: str) -> None:
    buffers = [bytearray(BLOCK)]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while os.readv(descriptor, buffers):
            pass
    finally:
        os.close(descriptor)


def read_pages(path: str, offsets: Sequence[int]) -> None:
    buffers = [bytearray(PAGE)]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for offset in offsets:
            os.preadv(descriptor, buffers, offset)
    finally:
        os.close(descriptor)


def page_offsets(size: int) -> list[int]:
    """The same pages in the same order every time."""
    offsets = [page * PAGE for page in range(size // PAGE)]
    random.Random(3).shuffle(offsets)
    return offsets[:READS]


def run(unions: Sequence[Union], work: str, rounds: int, *, quick: bool = False) -> Iterator[Sample]:
    """Raises OSError and drivers.errors.DriverError as the unions do."""
    size = QUICK_SIZE if quick else SIZE
    with lower_directory(work, lambda directory: fill(directory, size)) as lower:
        for turn in range(rounds):
            for union in rotated(unions, turn):
                with union.over(lower) as tree:
                    for measure, value in _once(tree, lower, size):
                        yield Sample("throughput", measure, union.name, value, "s/MiB")
                flush(work)


def _once(tree: Mounted, lower: str, size: int) -> Iterator[tuple[str, float]]:
    """One round on one union: each measure with its seconds per MiB."""
    for name, kind in (("file", ""), ("program", ", program")):
        path = os.path.join(tree.path, name)
        drop_pages(os.path.join(lower, name))
        for state in ("cold", "warm"):
            yield f"sequential read, {state}{kind}", seconds(partial(read, path)) / (size / MiB)
    path = os.path.join(tree.path, "file")
    tree.remount()
    read(os.path.join(lower, "file"))
    offsets = page_offsets(size)
    for state in ("fresh mount", "warm"):
        yield f"random read, {state}", seconds(partial(read_pages, path, offsets)) / (len(offsets) * PAGE / MiB)
    yield "sequential write", seconds(partial(write, os.path.join(tree.path, "new"), size)) / (size / MiB)
