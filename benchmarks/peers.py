"""The peers: fuse-overlayfs, unionfs-fuse and mergerfs, where they are installed, set up as a sensible user would.

Their layers are plain directories. Caches and threads are each program's defaults. Besides the branches they get:

    fuse-overlayfs    nothing; as root it takes allow_other by itself
    unionfs-fuse      allow_other; cow, without which it has no copy-up
    mergerfs          allow_other, use_ino (recommended by mergerfs(1)); category.create=ff, so that files are created
                      on the first branch, as in a union; minfreespace=0, or it refuses a branch with less than 4 GiB

mergerfs has neither copy-up nor whiteouts and takes part where none is needed. Kernel overlayfs is not here: it is the
driver overlay2. The servers run in the foreground (-f), as children, so that none can outlive the measurement.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.subjects import Layer, Stack, Tree, flush
from unionfs.linux.mounts import mounted_at, umount2

START_LIMIT = 10.0  # seconds within which a server's mount must appear

Command = Callable[[list[str], str, str, str], list[str]]  # (lower directories, top first; upper; work; target) -> argv


def _fuse_overlayfs(lowers: list[str], upper: str, work: str, target: str) -> list[str]:
    options = f"lowerdir={':'.join(lowers)},upperdir={upper},workdir={work}"
    return ["fuse-overlayfs", "-f", "-o", options, target]


def _unionfs_fuse(lowers: list[str], upper: str, work: str, target: str) -> list[str]:
    branches = ":".join([f"{upper}=RW", *(f"{lower}=RO" for lower in lowers)])
    return ["unionfs-fuse", "-f", "-o", "allow_other,cow", branches, target]


def _mergerfs(lowers: list[str], upper: str, work: str, target: str) -> list[str]:
    branches = ":".join([f"{upper}=RW", *(f"{lower}=RO" for lower in lowers)])
    options = "allow_other,use_ino,category.create=ff,minfreespace=0"
    return ["mergerfs", "-f", "-o", options, branches, target]


COMMANDS: dict[str, Command] = {
    "fuse-overlayfs": _fuse_overlayfs,
    "unionfs-fuse": _unionfs_fuse,
    "mergerfs": _mergerfs,
}


def installed() -> list[str]:
    return [name for name in COMMANDS if shutil.which(name)]


@dataclass(frozen=True)
class Peer:
    name: str
    work: str  # an existing directory

    @property
    def copies_up(self) -> bool:
        return self.name != "mergerfs"

    @contextmanager
    def stack(self, layers: Sequence[Layer]) -> Iterator[Stack]:
        with tempfile.TemporaryDirectory(prefix="layers-", dir=self.work) as root:
            lowers = []
            for number, fill in enumerate(layers, start=1):
                lowers.append(os.path.join(root, f"layer-{number}"))
                os.mkdir(lowers[-1])
                fill(lowers[-1])
            flush(self.work)
            yield _PeerStack(COMMANDS[self.name], root, lowers)


class _PeerStack:
    def __init__(self, command: Command, root: str, lowers: list[str]) -> None:
        self._command = command
        self._root = root
        self._lowers = lowers

    @contextmanager
    def writable(self, depth: int) -> Iterator[Tree]:
        with tempfile.TemporaryDirectory(prefix="top-", dir=self._root) as top:
            start = time.perf_counter()
            upper, work, target = (os.path.join(top, name) for name in ("upper", "work", "tree"))
            for directory in (upper, work, target):
                os.mkdir(directory)
            server = Server(self._command(self._lowers[depth - 1 :: -1], upper, work, target), target)
            try:
                server.start()
                yield Tree(target, time.perf_counter() - start, server.restart)
            finally:
                server.stop()


class Server:
    """One foreground server process and its mount."""

    def __init__(self, command: list[str], target: str) -> None:
        self._command = command
        self._target = target
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        # In a session of its own: ctrl-C is for us, and must not end the server while we unmount it.
        self._process = subprocess.Popen(
            self._command, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + START_LIMIT
        with open("/proc/self/mountinfo") as table:
            changes = select.poll()
            changes.register(table, select.POLLPRI)  # proc(5): ready when a mount has come or gone
            while mounted_at(self._target) is None:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise OSError(f"{self._command[0]} did not mount (exit status {self._process.poll()})")
                changes.poll(50)  # milliseconds: nothing announces that the server has ended instead
        os.stat(self._target)  # waits for INIT: the first answer

    def stop(self) -> None:
        if mounted_at(self._target) is not None:
            umount2(self._target)
        if self._process is not None:
            if self._process.poll() is None and mounted_at(self._target) is None:
                self._process.terminate()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

