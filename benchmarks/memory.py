"""What does a server keep in memory for the names it has been asked for?

A lower tree of 1,000,000 files, 100 a directory, is walked by du(1), which asks for every one. Measured of the server
process and its children:
  resident, idle              VmRSS after the first answer
  resident after the walk     VmRSS, while the kernel still knows all the files it was told of
  resident a known inode      the growth, divided by the number of files and directories

Kernel overlayfs has no server and is not here. The tree is on a tmpfs of its own whatever is measured besides: what a
server keeps does not depend on it, and a disk would be asked for a million inodes. All servers are walked at the same
time, since no clock is read. One round. Memory for the kernel's own inodes and dentries is not counted.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    with ExitStack() as held:
        place = held.enter_context(tempfile.TemporaryDirectory(prefix="memory-", dir=work))
        held.enter_context(tmpfs(place))
        lower = os.path.join(place, "lower")
        os.mkdir(lower)
        fill(lower, files, PER_DIRECTORY)
        servers = []
        for union in unions:
            tree = held.enter_context(replace(union, work=place).over(lower))
            servers.append((union.name, tree.path, tree.server_pid()))
        idle = {name: resident(pid) for name, _, pid in servers}
        inodes = files + files // PER_DIRECTORY
        _walk([path for _, path, _ in servers], inodes + 1)
        for name, _, pid in servers:
            after = resident(pid)
            yield Sample("memory", "resident, idle", name, idle[name], "B")
            yield Sample("memory", "resident after the walk", name, after, "B")
            yield Sample("memory", "resident a known inode", name, (after - idle[name]) / inodes, "B")


def _walk(paths: Sequence[str], inodes: int) -> None:
    """Walk all of `paths` at the same time; each has so many inodes, itself among them."""
    with ExitStack() as held:
        walkers = []
        for path in paths:
            walker = subprocess.Popen(["du", "--inodes", "--summarize", path], stdout=subprocess.PIPE, text=True)
            walkers.append(held.enter_context(walker))
            held.callback(walker.kill)  # does nothing to one that was waited for
        for walker, path in zip(walkers, paths, strict=True):
            assert walker.stdout is not None
            counted = walker.stdout.read().split()
            if walker.wait() or int(counted[0]) != inodes:
                raise OSError(f"du found {counted[:1]} inodes in {path} and not {inodes}")
