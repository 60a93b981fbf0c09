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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from drivers.api import Snapshotter
from drivers.mounts import Mount, mount_all, mounted, unmount_all
from drivers.registry import open_driver

Layer = Callable[[str], None]  # writes one layer's files below the directory it is given


def split_name(name: str) -> tuple[str, tuple[str, ...]]:
    """A subject's name as the driver's and the mount options it adds: "fuse-aufs:direct" takes that transport."""
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

    `name` is the driver's, with `:TRANSPORT` after it for mounts by another transport than the default (split_name).
    `stack` raises drivers.errors.Unavailable where the driver cannot work.
    """

    name: str
    work: str  # an existing directory
    copies_up = True

    @contextmanager
    def stack(self, layers: Sequence[Layer]) -> Iterator[Stack]:
        root = os.path.join(self.work, "driver")
        driver, options = split_name(self.name)
        snapshotter = open_driver(driver, root)
        try:
            stack = _DriverStack(snapshotter, os.path.join(self.work, "tree"), options)
            stack.commit(layers)
            flush(self.work)
            yield stack
        finally:
            snapshotter.close()
            shutil.rmtree(root)


class _DriverStack:
    def __init__(self, snapshotter: Snapshotter, target: str, options: tuple[str, ...]) -> None:
        self._snapshotter = snapshotter
        self._target = target
        self._options = options  # of a union of ours only

    def commit(self, layers: Sequence[Layer]) -> None:
        parent = ""
        for number, fill in enumerate(layers, start=1):
            with mounted(self._snapshotter.prepare("filling", parent)) as directory:
                fill(directory)
            parent = f"layer-{number}"
            self._snapshotter.commit(parent, "filling")

    @contextmanager
    def writable(self, depth: int) -> Iterator[Tree]:
        os.mkdir(self._target)

        def remount() -> None:
            unmount_all(self._target)
            self._mount(self._snapshotter.mounts("top"))

        try:
            start = time.perf_counter()
            mounts = self._snapshotter.prepare("top", f"layer-{depth}")
            try:
                self._mount(mounts)
                os.stat(self._target)
                yield Tree(self._target, time.perf_counter() - start, remount)
            finally:
                unmount_all(self._target)
                self._snapshotter.remove("top")
        finally:
            os.rmdir(self._target)

    def _mount(self, mounts: Sequence[Mount]) -> None:
        ours = [replace(m, options=(*m.options, *self._options)) if m.type == "unionfs" else m for m in mounts]
        mount_all(ours, self._target)


def flush(directory: str) -> None:
    """Write the file system of `directory` to disk, so that no measure shares the disk with what was done before it."""
    subprocess.run(["sync", "--file-system", directory], check=True)
