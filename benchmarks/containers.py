"""What does it cost to have many containers of one image?

An image of one layer, 16 files of 4 MiB and 1,000 of 4 KiB, and 10 containers of it, all mounted at once. Measured:
  image            writing the layer through its mount and committing it, until it is durable, per MiB
  new container    from asking for a writable layer to the first answer of its mount, each
  first change     appending a byte to a small file in each container, each
  remove           unmounting a container and removing it, each
  disk, each       by how much the disk's free space has shrunk with the containers, each having changed that one file
  memory, 4 read   how often the large files are in memory when 4 containers have read them: 1, and by how much
                   `Cached` in /proc/meminfo grows from the first of them to the last. 1 is a page cache that all share

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
from benchmarks.throughput import BLOCK, MiB, drop_pages
from benchmarks.timing import Sample, rotated

CONTAINERS, QUICK_CONTAINERS = 10, 3
READERS = 4
LARGE, SMALL = 16, 1000
LARGE_SIZE, SMALL_SIZE = 4 * MiB, 4096


def fill(directory: str) -> None:
    for number in range(LARGE):
        _write(os.path.join(directory, f"large-{number}"), LARGE_SIZE)
    for number in range(SMALL):
        _write(os.path.join(directory, f"small-{number}"), SMALL_SIZE)


def _write(path: str, size: int) -> None:
    with open(path, "wb") as file:
        file.write(os.urandom(size))


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
        size = (LARGE * LARGE_SIZE + SMALL * SMALL_SIZE) / MiB
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
        yield f"memory, {READERS} read", _copies([tree.path for tree in trees[:READERS]]), "copies"
        start = time.perf_counter()
        for container in containers:
            container.close()
        yield "remove", (time.perf_counter() - start) / count, "s"


def _copies(trees: Sequence[str]) -> float:
    """How often the large files are in memory after each of `trees` has read them, all descriptors still open."""
    names = [f"large-{number}" for number in range(LARGE)]
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
