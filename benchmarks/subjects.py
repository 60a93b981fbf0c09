"""Subjects: what can be measured, as one thing. Here the storage drivers; peers.py has the other union file systems.

A question describes its layers as functions that fill a directory, bottom first. `Subject.stack` builds and commits
them once; `Stack.writable(depth)` mounts a new, empty writable layer over the lowest `depth` of them, again and again.

Everything is below the work directory, and gone when the context managers have ended. Not thread-safe.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from drivers.api import Mount, Snapshotter
from drivers.catalog import open_driver
from drivers.mounts.attached import mount_all, unmount_all
from drivers.mounts.tree import private

Layer = Callable[[str], None]  # writes one layer's files below the directory it is given


def split_name(name: str) -> tuple[str, tuple[str, ...]]:
    """A subject's name as the driver's, and the mount options it adds: "fuse-aufs:direct" takes that transport."""
    driver, _, transport = name.partition(":")
    return driver, (f"transport={transport}",) if transport else ()


@dataclass
class Tree:
    """A mounted tree whose top is a writable layer, empty at first."""

    path: str
    ready: float  # seconds from asking for the writable layer to the first answer of its mount
    remount: Callable[[], None]  # unmounts and mounts it again: what the union itself remembered is forgotten


class Stack(Protocol):
    """The committed layers of one subject."""

    def writable(self, depth: int) -> AbstractContextManager[Tree]: ...


class Subject(Protocol):
    """Works below the directory `work`; `copies_up` is false where a file of a lower layer cannot be changed."""

    @property
    def name(self) -> str: ...

    @property
    def work(self) -> str: ...

    @property
    def copies_up(self) -> bool: ...

    def stack(self, layers: Sequence[Layer]) -> AbstractContextManager[Stack]: ...


@dataclass(frozen=True)
class Driver:
    """A storage driver, used as the runtime uses it: prepare, fill and commit each layer, prepare and mount the top.

    `name` is the driver's, with `:TRANSPORT` after it for mounts by another transport than the default (split_name);
    `storage_options` are the driver's (drivers.catalog).
    `stack` raises drivers.errors.Unavailable where the driver cannot work.
    """

    name: str
    work: str  # an existing directory
    storage_options: Mapping[str, str] = field(default_factory=dict)
    copies_up = True

    @contextmanager
    def stack(self, layers: Sequence[Layer]) -> Iterator[DriverStack]:
        root = os.path.join(self.work, "driver")
        driver, options = split_name(self.name)
        snapshotter = open_driver(driver, root, self.storage_options)
        try:
            stack = DriverStack(snapshotter, self.work, options)
            stack.commit(layers)
            flush(self.work)
            yield stack
        finally:
            for info in reversed(list(snapshotter.walk())):
                snapshotter.remove(info.name)
            snapshotter.close()
            shutil.rmtree(root)


class DriverStack:
    """The layers of a driver; it can have several writable trees over them at once, each by a key of its own."""

    def __init__(self, snapshotter: Snapshotter, work: str, options: tuple[str, ...]) -> None:
        self._snapshotter = snapshotter
        self._work = work
        self._options = options  # only for a union of ours

    def commit(self, layers: Sequence[Layer]) -> None:
        parent = ""
        for number, fill in enumerate(layers, start=1):
            with private(self._snapshotter.prepare("filling", parent)) as root:
                fill(f"/proc/{os.getpid()}/fd/{root}")  # a path that also works for programs that it runs
            parent = f"layer-{number}"
            self._snapshotter.commit(parent, "filling")

    @contextmanager
    def writable(self, depth: int, key: str = "top") -> Iterator[Tree]:
        target = os.path.join(self._work, f"tree-{key}")
        os.mkdir(target)

        def remount() -> None:
            unmount_all(target)
            self._mount(self._snapshotter.mounts(key), target)

        try:
            start = time.perf_counter()
            mounts = self._snapshotter.prepare(key, f"layer-{depth}")
            try:
                self._mount(mounts, target)
                os.stat(target)
                yield Tree(target, time.perf_counter() - start, remount)
            finally:
                unmount_all(target)
                self._snapshotter.remove(key)
        finally:
            os.rmdir(target)

    def _mount(self, mounts: Sequence[Mount], target: str) -> None:
        ours = [replace(m, options=(*m.options, *self._options)) if m.type == "unionfs" else m for m in mounts]
        mount_all(ours, target)


def flush(directory: str) -> None:
    """Write the file system of `directory` to disk, so that no measure shares the disk with what was done before it."""
    subprocess.run(["sync", "--file-system", directory], check=True)
