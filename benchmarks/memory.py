"""What does a server keep in memory for the names it has been asked for?

A lower tree of 1,000,000 files, 100 per directory, is walked by du(1), which asks for every one. Measured for the
server process and its children:
  resident, idle              VmRSS after the first answer
  resident after the walk     VmRSS, while the kernel still knows all the files it was told of
  resident a known inode      the growth, divided by the number of files and directories

Kernel overlayfs has no server and is not here. The tree is on a tmpfs of its own whatever else is measured: what a
server keeps does not depend on that, and a disk would be asked for a million inodes. No clock is read, so each
processor has a union of its own at the same time, server and walker both on it: a request then wakes no other
processor, which is most of a walk's time on an idle machine. One round. Memory for the kernel's own inodes and dentries
is not counted.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.timing import Sample
from benchmarks.unions import Union
from benchmarks.walk import fill
from unionfs.linux.mounts import mount, umount2

FILES, QUICK_FILES = 1_000_000, 50_000
PER_DIRECTORY = 100


@contextmanager
def tmpfs(directory: str) -> Iterator[None]:
    """A tmpfs mounted on `directory` that takes as many inodes as there is memory for."""
    mount("fuse-aufs-benchmark", directory, "tmpfs", 0, "mode=755,size=75%,nr_inodes=0")
    try:
        yield
    finally:
        umount2(directory)


def resident(pid: int) -> int:
    """Bytes of memory in use by a process and all its descendants: VmRSS of proc_pid_status(5)."""
    with open(f"/proc/{pid}/status") as table:
        own = next(int(line.split()[1]) * 1024 for line in table if line.startswith("VmRSS:"))
    children: list[str] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as table:
            children += table.read().split()
    return own + sum(resident(int(child)) for child in children)


def run(unions: Sequence[Union], work: str, rounds: int, *, quick: bool = False) -> Iterator[Sample]:
    """Raises OSError and drivers.errors.DriverError as the unions do, and subprocess.CalledProcessError."""
    unions = [union for union in unions if union.has_server]
    if not unions:
        return
    files = QUICK_FILES if quick else FILES
    inodes = files + files // PER_DIRECTORY
    with tempfile.TemporaryDirectory(prefix="memory-", dir=work) as place, tmpfs(place):
        lower = os.path.join(place, "lower")
        os.mkdir(lower)
        fill(lower, files, PER_DIRECTORY)
        processors = sorted(os.sched_getaffinity(0))

        def pin() -> None:
            os.sched_setaffinity(0, {processors.pop()})

        def ask(union: Union) -> tuple[str, int, int]:
            with replace(union, work=place).over(lower) as tree:
                server = tree.server_pid()
                idle = resident(server)
                _walk(tree.path, inodes + 1)
                return union.name, idle, resident(server)

        with ThreadPoolExecutor(len(processors), initializer=pin) as pool:
            for name, idle, after in pool.map(ask, unions):
                yield Sample("memory", "resident, idle", name, idle, "B")
                yield Sample("memory", "resident after the walk", name, after, "B")
                yield Sample("memory", "resident a known inode", name, (after - idle) / inodes, "B")


def _walk(path: str, inodes: int) -> None:
    """Ask for everything below `path`, which has `inodes` inodes, itself included."""
    counted = subprocess.run(["du", "--inodes", "--summarize", path], stdout=subprocess.PIPE, text=True, check=True)
    if int(counted.stdout.split()[0]) != inodes:
        raise OSError(f"du found {counted.stdout.split()[0]} inodes in {path} and not {inodes}")
