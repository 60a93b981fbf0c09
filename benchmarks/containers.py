"""What does it cost to have many containers of one image?

An image of one layer, 8 files and 8 programs of 4 MiB and 1,000 files of 4 KiB, and 10 containers of it, all mounted at
once. Measured:
  image            writing the layer through its mount and committing it, until it is durable, per MiB
  new container    from asking for a writable layer to the first answer of its mount, each
  first change     appending a byte to a small file in each container, each
  remove           unmounting a container and removing it, each
  disk, each       by how much the disk's free space has shrunk with the containers, each having changed that one file
  memory, 4 read   how often those 8 files are in memory when 4 containers have read them: 1, and by how much
                   `Cached` in /proc/meminfo grows from the first of them to the last. 1 is a page cache that all share
  memory, 4 run    the same of the programs

A driver that copies (vfs) pays in `new container` and `disk` for what the others pay at the first change. The disk is
that of the work directory: a driver whose pool lies elsewhere shows nothing there. Drivers on a device or dataset of
their own (devicemapper, zfs, btrfs) pay for the small file in blocks of their own size.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from benchmarks.pagecache import cached
from benchmarks.subjects import Driver, Subject, flush
from benchmarks.throughput import BLOCK, KINDS, MiB, drop_pages
from benchmarks.timing import Sample, rotated

CONTAINERS, QUICK_CONTAINERS = 10, 3
READERS = 4
LARGE, SMALL = 8, 1000
LARGE_SIZE, SMALL_SIZE = 4 * MiB, 4096


def fill(directory: str) -> None:
    for kind, head in KINDS.items():
        for number in range(LARGE):
            _write(os.path.join(directory, f"{kind}-{number}"), LARGE_SIZE, head)
    for number in range(SMALL):
        _write(os.path.join(directory, f"small-{number}"), SMALL_SIZE)


def _write(path: str, size: int, head: bytes = b"") -> None:
    with open(path, "wb") as file:
        file.write(head + os.urandom(size - len(head)))


def free(directory: str) -> int:
    """Bytes that are free on the file system of `directory`, once what was written to it is on the disk."""
    flush(directory)
    status = os.statvfs(directory)
    return status.f_bfree * status.f_frsize


def run(subjects: Sequence[Subject], rounds: int, *, quick: bool = False) -> Iterator[Sample]:
    """Raises OSError and drivers.errors.DriverError as the subjects do."""
    count = QUICK_CONTAINERS if quick else CONTAINERS
    drivers = [(subject.name, subject) for subject in subjects if isinstance(subject, Driver)]
    for turn in range(rounds):
        for _, driver in rotated(drivers, turn):
            for measure, value, unit in _once(driver, count):
                yield Sample("containers", measure, driver.name, value, unit)


def _once(driver: Driver, count: int) -> Iterator[tuple[str, float, str]]:
    start = time.perf_counter()
    with ExitStack() as held:
        stack = held.enter_context(driver.stack([fill]))
        size = (len(KINDS) * LARGE * LARGE_SIZE + SMALL * SMALL_SIZE) / MiB
        yield "image", (time.perf_counter() - start) / size, "s/MiB"
        before = free(driver.work)
        containers = [ExitStack() for _ in range(count)]
        for container in containers:
            held.enter_context(container)
        trees = [
            container.enter_context(stack.writable(1, f"top-{number}")) for number, container in enumerate(containers)
        ]
        yield "new container", sum(tree.ready for tree in trees) / count, "s"
        start = time.perf_counter()
        for number, tree in enumerate(trees):
            with open(os.path.join(tree.path, f"small-{number}"), "ab") as file:
                file.write(b"x")
        yield "first change", (time.perf_counter() - start) / count, "s"
        yield "disk, each", max(0.0, (before - free(driver.work)) / count), "B"
        readers = [tree.path for tree in trees[:READERS]]
        yield f"memory, {READERS} read", _copies(readers, "file"), "copies"
        yield f"memory, {READERS} run", _copies(readers, "program"), "copies"
        start = time.perf_counter()
        for container in containers:
            container.close()
        yield "remove", (time.perf_counter() - start) / count, "s"


def _copies(trees: Sequence[str], kind: str) -> float:
    """How often the large files of a kind are in memory after each of `trees` has read them, all still open."""
    names = [f"{kind}-{number}" for number in range(LARGE)]
    for tree in trees:
        for name in names:
            drop_pages(os.path.join(tree, name))
    grown = []
    with ExitStack() as held:
        buffers = [bytearray(BLOCK)]
        for tree in trees:
            for name in names:
                descriptor = os.open(os.path.join(tree, name), os.O_RDONLY)
                held.callback(os.close, descriptor)
                while os.readv(descriptor, buffers):
                    pass
            grown.append(cached())
    return 1 + (grown[-1] - grown[0]) / (LARGE * LARGE_SIZE)
