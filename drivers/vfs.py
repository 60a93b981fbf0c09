"""The driver `vfs`: every snapshot is a full copy of its parent.

It needs nothing of the kernel or the file system, and what it gives is as fast as a plain directory, for it is one.
On a file system with reflinks (btrfs, XFS) the copies share their data, and cost only their inodes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from drivers.api import Kind, Mount, Probe
from drivers.disk.copytree import copy_tree
from drivers.disk.durable import sync_directory, sync_file_system
from drivers.graph.directories import DirectorySnapshotter, begin_layer, bind
from drivers.graph.snapshotter import NewSnapshot
from unionfs.linux.files import ficlone

OPTIONS: dict[str, str] = {}


class Driver(DirectorySnapshotter):
    """`fs` is the whole tree. A view with a parent is the parent's own directory, mounted read-only."""

    NAME = "vfs"

    def _begin(self, directory: str, new: NewSnapshot, parents: Sequence[str]) -> None:
        layer = os.path.join(directory, "fs")
        if new.kind is Kind.ACTIVE and parents:
            copy_tree(parents[0], layer)
            # The copy holds what was durable in the parent: it must not be less so when its row is committed.
            sync_file_system(layer)
        else:
            begin_layer(layer, (), lambda attribute: False)
            sync_directory(layer)

    def _tree(self, directory: str, kind: Kind, parents: Sequence[str], *, volatile: bool) -> list[Mount]:
        if kind is Kind.VIEW and parents:
            return bind(parents[0], kind)
        return bind(os.path.join(directory, "fs"), kind)


def probe(directory: str, options: Mapping[str, str]) -> Probe:
    """`directory` is on the file system in question, and ours to use."""
    source = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        target = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.write(source, b"data")
            ficlone(target, source)
        finally:
            os.close(target)
    except OSError as error:
        return Probe(True, f"full copies, without reflinks ({error.strerror})")
    finally:
        os.close(source)
    return Probe(True, "full copies that share their data by reflink")
