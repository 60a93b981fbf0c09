"""The trees that a diff is about, opened: a snapshot's own, and its parent's.

A driver that keeps differences in a directory of their own is believed (Snapshotter.differences), and the directory
read in its form; for others the two trees are compared. Either way the parent's tree is there to look at: a file that
was only opened for writing, or changed back, has not changed.

All are detached mounts (drivers.mounts.tree.private), read-only, on which no device can be opened, and they end with
us. An active snapshot may be in use: the caller then gives its tree as it is mounted. The one thing that outlives a
killed process is the view of the parent in the driver. Its name says which process it belongs to, and whoever opens
trees next takes back the views of those that are gone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from drivers.api import Form, Kind, Mount, Snapshotter
from drivers.errors import DriverError
from drivers.mounts.at_rest import at_rest
from drivers.mounts.tree import private

# diff-(pid namespace)-(pid)-(start time of the process)-(random)
_KEY = re.compile(r"diff-(\d+)-(\d+)-(\d+)-[0-9a-f]+")


class Trees(NamedTuple):
    """Descriptors of the roots. `old` is None for a snapshot without a parent; `form` is that of `new` (diff.forms)."""

    new: int
    old: int | None
    form: Form | None


@contextmanager
def compared(driver: Snapshotter, key: str, live: int | None = None) -> Iterator[Trees]:
    """The tree of the snapshot `key`, of any kind, and that of its parent. `live` and errors as for tree()."""
    take_back(driver)
    with ExitStack() as held:
        info = driver.stat(key)
        native = driver.differences(key)
        if native is not None:
            directory = [Mount("bind", native.path, ("ro",))]
            new = held.enter_context(private(directory, read_only=True))
        else:
            new = held.enter_context(tree(driver, key, live))
        old = held.enter_context(_committed(driver, info.parent)) if info.parent else None
        yield Trees(new, old, native.form if native is not None else None)


@contextmanager
def tree(driver: Snapshotter, key: str, live: int | None = None) -> Iterator[int]:
    """A descriptor of the root of the whole tree of the snapshot `key`, of any kind.

    `live`, for an active snapshot that is in use, is a descriptor of the root of its mount, read-only, without devices.
    Without it, raises InUse for a union or an overlay that is in use; other DriverErrors, OSError.
    """
    kind = driver.stat(key).kind
    if kind is Kind.COMMITTED:
        with _committed(driver, key) as fd:
            yield fd
    elif live is not None:
        yield live
    else:
        mounts = driver.mounts(key)
        if kind is Kind.ACTIVE:
            mounts = [at_rest(mount) for mount in mounts]
        with private(mounts, read_only=True) as fd:
            yield fd


@contextmanager
def _committed(driver: Snapshotter, name: str) -> Iterator[int]:
    view = _name()
    mounts = driver.view(view, name)
    try:
        with private(mounts, read_only=True) as fd:
            yield fd
    finally:
        driver.remove(view)


def take_back(driver: Snapshotter) -> None:
    """Remove the views of processes that were killed. For those of another pid namespace we cannot tell."""
    for info in list(driver.walk()):
        match = _KEY.fullmatch(info.name)
        if match is None or info.kind is not Kind.VIEW or int(match[1]) != _pid_namespace():
            continue
        if _started(int(match[2])) == match[3]:
            continue
        # Another process may be quicker; or the last of its tree is only just ending, and the next call tries again.
        with contextlib.suppress(DriverError, OSError):
            driver.remove(info.name)


def _name() -> str:
    pid = os.getpid()
    return f"diff-{_pid_namespace()}-{pid}-{_started(pid)}-{os.urandom(6).hex()}"


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _started(pid: int) -> str:
    """When the process began, in clock ticks since boot (proc(5), stat, field 22); "" if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):  # the latter when it ends between open(2) and read(2)
        return ""
