"""The driver `fuse-aufs`: directories of differences in AUFS form, put together by our own union.

    <id>/fs      the layer: a branch of `unionfs`, hence an OCI layer as it is, whiteouts and all

The union may leave three things of its own in a branch: the base of its whiteouts and its pseudo-links, which belong to
the layer (pseudo-links make a file one file again in the unions above), and its work area, which does not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from drivers.api import Differences, Directories, Kind, Mount, Probe
from drivers.disk import trees
from drivers.disk.durable import sync_directory
from drivers.disk.locks import holder, lock
from drivers.disk.quota import delete_with_project, limit_directories, require_quotas
from drivers.errors import InUse, TimedOut
from drivers.graph.directories import DirectorySnapshotter, begin_layer, bind
from drivers.graph.snapshotter import NewSnapshot
from drivers.graph.transaction import Record
from drivers.mounts.union import branches
from unionfs.transport.branches import probe_writable
from unionfs.union.form import PSEUDO_LINKS, WORK_AREA, is_private_attribute

OPTIONS: dict[str, str] = {}

# Seconds for a server whose last user is gone to end: it deletes what was open and unlinked.
_PATIENCE = 5.0


class Driver(DirectorySnapshotter):
    """What is a single directory is not mounted as a union: a first layer, and a view of it, are binds."""

    NAME = "fuse-aufs"

    def __init__(self, root: str, options: Mapping[str, str]) -> None:
        super().__init__(root, options, delete=delete_with_project)

    def _begin(self, directory: str, new: NewSnapshot, parents: Sequence[str]) -> None:
        layer = os.path.join(directory, "fs")
        begin_layer(layer, parents if new.kind is Kind.ACTIVE else (), is_private_attribute)
        sync_directory(layer)
        if new.quota:
            limit_directories([layer], new.quota)

    def _check_quota(self, quota: int) -> None:
        require_quotas(self._layout.path)

    def _tree(self, directory: str, kind: Kind, parents: Sequence[str], *, volatile: bool) -> list[Mount]:
        layer = os.path.join(directory, "fs")
        if not parents:
            return bind(layer, kind)
        if kind is Kind.ACTIVE:
            return [union([(layer, "rw"), *((path, "rr") for path in parents)], volatile=volatile)]
        return bind(parents[0], kind) if len(parents) == 1 else [union([(path, "rr") for path in parents])]

    def differences(self, key: str) -> Differences | None:
        """The layer, unless it has pseudo-links: a name that only a pseudo-link serves has changed and has no entry."""
        with self._store.read() as transaction:
            record = transaction.get(key)
        layer = self._layer(record)
        return None if record.info.kind is Kind.VIEW or _has_pseudo_links(layer) else Differences(layer, "aufs")

    def directories(self, key: str) -> Directories | None:
        """The layer and its parents, unless there are pseudo-links: only the union knows whose names those are."""
        found = self._stacked(key, "aufs")
        return None if any(map(_has_pseudo_links, (found.own, *found.parents))) else found

    def _check_idle(self, record: Record) -> None:
        """A union locks its writable branch for as long as its server lives (union/branch)."""
        layer = self._layer(record)
        try:
            fd = os.open(layer, trees.DIRECTORY)
        except FileNotFoundError:
            return  # somebody has deleted it, and the snapshot can still be removed
        try:
            lock(fd, layer, patience=_PATIENCE)
        except TimedOut:
            raise InUse(f"a union still writes to {layer}: {holder(os.fstat(fd))}; unmount it first") from None
        finally:
            os.close(fd)

    def _settle(self, record: Record) -> None:
        """Take away the work area, which a server that was killed leaves behind; each mount makes its own."""
        try:
            trees.delete_path(os.path.join(self._layer(record), os.fsdecode(WORK_AREA)))
        except FileNotFoundError:
            pass


def _has_pseudo_links(layer: str) -> bool:
    try:
        return bool(os.listdir(os.path.join(layer, os.fsdecode(PSEUDO_LINKS))))
    except FileNotFoundError:
        return False


def union(stack: Sequence[tuple[str, str]], *, volatile: bool = False) -> Mount:
    """The Mount of a union of branches (path, permission), top first."""
    words = ("ro",) if stack[0][1] != "rw" else ("volatile",) if volatile else ()
    return Mount("unionfs", "unionfs", (branches(stack), *words))


def probe(directory: str, options: Mapping[str, str]) -> Probe:
    """Whether there is FUSE, and a file system that a branch can be on."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Probe(False, f"cannot open /dev/fuse ({error.strerror}): modprobe fuse, or give it to this container")
    branch = os.path.join(directory, "branch")  # the directory itself is locked by whoever has made it
    os.mkdir(branch)
    try:
        probe_writable(branch)
    except OSError as error:
        return Probe(False, f"a branch cannot be here: {error.strerror}")
    return Probe(True, "AUFS layers over FUSE")
