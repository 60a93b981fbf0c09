"""What does the first change to a file of a lower layer cost?

Measured, for files of 4 KiB, 1 MiB and 64 MiB, each file changed once in each round:
  first write   open(O_WRONLY), pwrite of one byte, close
  first chmod   chmod(2): the data is not touched, and most unions copy it all the same
and, as what a driver does before the first change can be made,
  new layer     from asking for a writable layer over these files to the first answer of its mount.
                vfs copies the whole tree here, and nothing later.

Warm: the lower file's data is in the page cache (it was just written, and flushed), and its name has been looked up in
the union before the clock starts. So it is the copy that is measured, not reading from the disk. What a union promises
about durability is in its time: overlay2 and fuse-aufs flush each copy to disk before they make the change;
fuse-overlayfs and unionfs-fuse flush nothing (seen with strace).

Not measured: many writers at once, sparse files, later writes to the copy, and the disk's own write-back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from benchmarks.subjects import Subject
from benchmarks.timing import Sample, per_operation, rotated

KiB, MiB = 1 << 10, 1 << 20
SIZES = {"4 KiB": 4 * KiB, "1 MiB": MiB, "64 MiB": 64 * MiB}
FILES = {"4 KiB": 16, "1 MiB": 4, "64 MiB": 1}  # of each size, for each of the two changes
QUICK = ("4 KiB", "1 MiB")


def first_write(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, b"x", 0)
    finally:
        os.close(descriptor)


def first_chmod(path: str) -> None:
    os.chmod(path, 0o600)


CHANGES = {"first write": first_write, "first chmod": first_chmod}


def names(change: str, size: str) -> list[str]:
    """The files, relative to the tree, that this change is measured on."""
    return [f"{change} {size} {number}".replace(" ", "-") for number in range(FILES[size])]


class Fill:
    """Fills a directory with the files of every change and size; random data, so nothing can be a hole or shared."""

    def __init__(self, sizes: Sequence[str]) -> None:
        self._data = {size: os.urandom(SIZES[size]) for size in sizes}

    def __call__(self, directory: str) -> None:
        for change in CHANGES:
            for size, data in self._data.items():
                for name in names(change, size):
                    with open(os.path.join(directory, name), "wb") as file:
                        file.write(data)


def run(subjects: Sequence[Subject], rounds: int, *, quick: bool = False) -> Iterator[Sample]:
    """Raises OSError and drivers.errors.DriverError as the subjects do."""
    sizes = QUICK if quick else tuple(SIZES)
    fill = Fill(sizes)
    with ExitStack() as open_stacks:
        stacks = [(s.name, open_stacks.enter_context(s.stack([fill]))) for s in subjects if s.copies_up]
        for turn in range(rounds):
            for subject, stack in rotated(stacks, turn):
                with stack.writable(1) as tree:
                    yield Sample("copyup", "new layer", subject, tree.ready)
                    for change, operation in CHANGES.items():
                        for size in sizes:
                            paths = [os.path.join(tree.path, name) for name in names(change, size)]
                            for path in paths:
                                os.stat(path)
                            yield Sample("copyup", f"{change}, {size}", subject, per_operation(operation, paths))
