"""How often is one lower file in memory when several mounts read it?

4 unions of the same lower directory, as 4 containers of one image have them, each read one file of 256 MiB through an
open descriptor. Measured:
  lower file, 4 mounts      by how much `Cached` in /proc/meminfo has grown since before the file was written, in
                            sizes of the file, with all descriptors still open: 1 is the lower file's own pages and
                            nothing else
  lower program, 4 mounts   the same of a file that begins as a program does: a union may treat it otherwise

The lower file's pages are dropped before the mounts read it, except on tmpfs, where they are the file. `Cached` counts
the whole machine: what others read or write meanwhile is in it. One round: it is a count, not a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from benchmarks.throughput import BLOCK, KINDS, MiB, drop_pages, fill
from benchmarks.timing import Sample
from benchmarks.unions import Union, lower_directory

SIZE, QUICK_SIZE = 256 * MiB, 64 * MiB
MOUNTS = 4


def cached() -> int:
    """Bytes of file data in memory, that of tmpfs included: `Cached` of proc_meminfo(5)."""
    with open("/proc/meminfo") as table:
        return next(int(line.split()[1]) * 1024 for line in table if line.startswith("Cached:"))


def run(unions: Sequence[Union], work: str, rounds: int, *, quick: bool = False) -> Iterator[Sample]:
    """Raises OSError and drivers.errors.DriverError as the unions do."""
    size = QUICK_SIZE if quick else SIZE
    for name in KINDS:
        for union in unions:
            copies = _grown(union, work, name, size) / size
            yield Sample("pagecache", f"lower {name}, {MOUNTS} mounts", union.name, copies, "copies")


def _grown(union: Union, work: str, name: str, size: int) -> int:
    before = cached()
    with ExitStack() as held:
        lower = held.enter_context(lower_directory(work, lambda directory: fill(directory, size, [name])))
        drop_pages(os.path.join(lower, name))
        buffers = [bytearray(BLOCK)]
        for _ in range(MOUNTS):
            tree = held.enter_context(union.over(lower))
            descriptor = os.open(os.path.join(tree.path, name), os.O_RDONLY)
            held.callback(os.close, descriptor)
            while os.readv(descriptor, buffers):
                pass
        return cached() - before
