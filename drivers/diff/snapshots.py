"""The trees that a diff is about, opened: a snapshot's own, and its parent's.

A driver that keeps differences by themselves is believed (Snapshotter.differences), and its directory read in its form;
of others the tree is compared. Either way the parent's tree is there to look at: a file that was only opened for
writing, or changed back, is no change. An active snapshot may be mounted and in use: it is read beside that.

What can be opened without being mounted is: a bind is its directory, an overlay a detached mount, and both end with us.
What has to be mounted, and the view of the parent in the driver, outlive a process that is killed. Their name says
which process that is, and whoever opens the next trees takes back what belongs to one that is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from drivers.api import Kind, Snapshotter
from drivers.diff import forms
from drivers.errors import DriverError
from drivers.mounts import Mount, private, unmount_all
from drivers.trees import DIRECTORY

# diff-(pid namespace)-(pid)-(start time of the process)-(random)
_KEY = re.compile(r"diff-(\d+)-(\d+)-(\d+)-[0-9a-f]+")


class Trees(NamedTuple):
    """Descriptors of the roots. `old` is None for a snapshot without a parent; `form` is that of `new` (diff.forms)."""

    new: int
    old: int | None
    form: str


@contextmanager
def compared(driver: Snapshotter, key: str) -> Iterator[Trees]:
    """The tree of the snapshot `key`, of any kind, and that of its parent. DriverError, OSError."""
    _take_back(driver)
    with ExitStack() as held:
        info = driver.stat(key)
        native = driver.differences(key)
        if native is not None:
            new, form = _directory(native.path, held), native.form
        else:
            new, form = held.enter_context(tree(driver, key)), forms.PLAIN
        old = held.enter_context(_committed(driver, info.parent)) if info.parent else None
        yield Trees(new, old, form)


@contextmanager
def tree(driver: Snapshotter, key: str) -> Iterator[int]:
    """A descriptor of the root of the whole tree of the snapshot `key`, of any kind. DriverError, OSError."""
    info = driver.stat(key)
    if info.kind is Kind.COMMITTED:
        with _committed(driver, key) as fd:
            yield fd
        return
    mounts = driver.mounts(key)
    with _opened([_beside(mount) for mount in mounts] if info.kind is Kind.ACTIVE else mounts, _name()) as fd:
        yield fd


@contextmanager
def _committed(driver: Snapshotter, name: str) -> Iterator[int]:
    view = _name()
    mounts = driver.view(view, name)
    try:
        with _opened(mounts, view) as fd:
            yield fd
    finally:
        driver.remove(view)


def _beside(mount: Mount) -> Mount:
    """The same tree to read, where `mount` may be mounted elsewhere already: with the writable layer as one more below.

    A union and an overlay have a writer's lock on theirs. A bind, or one more mount of the same device, has no such.
    """
    options = mount.options
    if mount.type == "unionfs":
        (stack,) = (option for option in options if option.startswith("br="))
        return Mount(mount.type, mount.source, (re.sub(r"(?<!\\)=rw(?=:|$)", "=rr", stack), "ro"))
    if mount.type == "overlay":
        upper = [option.partition("=")[2] for option in options if option.startswith("upperdir=")]
        layers = [f"lowerdir+={path}" for path in upper]
        rest = [option for option in options if not option.startswith(("upperdir=", "workdir=", "volatile"))]
        return Mount(mount.type, mount.source, (*layers, *rest, "ro"))
    return mount


@contextmanager
def _opened(mounts: Sequence[Mount], name: str) -> Iterator[int]:
    with private(mounts) as fd:
        yield fd


def _directory(path: str, held: ExitStack) -> int:
    fd = os.open(path, DIRECTORY)
    held.callback(os.close, fd)
    return fd


def _place(name: str) -> str:
    return os.path.join(tempfile.gettempdir(), f"fuse-aufs-{name}")


def _name() -> str:
    pid = os.getpid()
    return f"diff-{_pid_namespace()}-{pid}-{_started(pid)}-{os.urandom(6).hex()}"


def _take_back(driver: Snapshotter) -> None:
    """Remove the views, and the mounts, of processes that were killed. Of another pid namespace's we cannot tell."""
    for info in list(driver.walk()):
        match = _KEY.fullmatch(info.name)
        if match is None or info.kind is not Kind.VIEW or int(match[1]) != _pid_namespace():
            continue
        if _started(int(match[2])) == match[3]:
            continue
        # Another process may be quicker, or somebody look into what is mounted: the next one tries again.
        with contextlib.suppress(DriverError, OSError):
            _unmount(_place(info.name))
            driver.remove(info.name)


def _unmount(place: str) -> None:
    try:
        found = os.lstat(place)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():  # the directory above is anybody's to write to
        unmount_all(place)
        os.rmdir(place)


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _started(pid: int) -> str:
    """When the process began, in clock ticks since boot (proc(5), stat, field 22); "" if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return ""
