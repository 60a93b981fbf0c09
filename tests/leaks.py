"""What a test can leave behind on the machine, seen before and after it.

The test run has mounts, links and mostly control groups of its own (isolation.py), so each of them there is the run's
and other people's are out of sight. Processes are the run's when they descend from it or carry its mark in their
environment; loop devices when their file is below its temporary directory; where control groups are shared, those whose
name says so and in which nobody else's process is.
"""

from __future__ import annotations

import gc
import os
import socket
import time
import traceback
import warnings
from typing import NamedTuple

from tests.isolation import MARK
from unionfs.linux import mounts

_CGROUP_ROOT = "/sys/fs/cgroup"
_PATIENCE = 30.0  # seconds for what ends by itself: a server after its unmount, a lazily released loop device
_PATIENCE_WITH_A_FAILURE = 2.0


class Belongings(NamedTuple):
    """Sets of sentences, each naming one thing; the difference of two is what was left behind."""

    mounts: frozenset[str]
    processes: frozenset[str]
    loops: frozenset[str]
    thins: frozenset[str]
    links: frozenset[str]
    cgroups: frozenset[str]
    descriptors: frozenset[str]


def belongings(basetemp: str, *, groups: bool = False) -> Belongings:
    """What there is now; control groups only when asked, for a test that makes some: where they are shared they cannot
    be told from those of another run, as empty ones name nobody."""
    return Belongings(
        frozenset(f"mount of {m.fstype} ({m.source}) at {m.target}" for m in mounts.mountinfo()
                  if not m.target.startswith(("/proc/", "/sys/"))),
        frozenset(f"process {pid} ({_command(pid)})" for pid in processes()),
        frozenset(_loops(basetemp)),
        frozenset(_thins()),
        frozenset(f"network link {name}" for _, name in socket.if_nameindex()),
        frozenset(_cgroups() if groups else ()),
        frozenset(_descriptors()),
    )


def left_behind(before: Belongings, basetemp: str, *, groups: bool = False, failed: bool = False) -> list[str]:
    """What there is now and was not `before`, after a while for what is just ending. A test that `failed` was not there
    to close descriptors, and what they keep will not end: these are not told, and of the rest little is waited for."""
    deadline = time.monotonic() + (_PATIENCE_WITH_A_FAILURE if failed else _PATIENCE)
    while True:
        after = belongings(basetemp, groups=groups)
        if failed:
            after = after._replace(descriptors=before.descriptors)
        left = sorted(thing for was, now in zip(before, after, strict=True) for thing in now - was)
        if not left or time.monotonic() > deadline:
            return left
        gc.collect()  # a descriptor in a reference cycle is not leaked, only not closed yet
        time.sleep(0.01)  # none of these ends with an event to wait for


def let_go(error: BaseException) -> None:
    """End what only the variables of the functions that `error` went through hold, as open files. Who would
    close them is gone, and a mount in which a file is open cannot be unmounted."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        while pending:
            each = pending.pop()
            if each is None or id(each) in seen:
                continue
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            for frame, _ in traceback.walk_tb(each.__traceback__):
                _ = frame.f_locals  # the copy of what there was, that whoever showed the error took, is renewed
            pending += [each.__context__, each.__cause__]
            pending += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        gc.collect()


def processes() -> set[int]:
    """The processes of this run but the run itself: descendants, and orphans that carry the mark."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    parents: dict[int, int] = {}
    ours = {os.getpid()}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:
                state, parent = stat.read().rpartition(b") ")[2].split()[:2]
            with open(f"/proc/{pid}/environ", "rb") as environ:
                marked = mark in environ.read().split(b"\0")
        except OSError:
            continue  # it ended, or is not ours to look at
        if state != b"Z" or int(parent) == os.getpid():
            parents[pid] = int(parent)
            if marked:
                ours.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return ours - {os.getpid()}


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            return cmdline.read().replace(b"\0", b" ").decode(errors="replace").strip() or "zombie"
    except OSError:
        return "ended"


def _loops(basetemp: str) -> list[str]:
    found = []
    for name in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8", errors="replace") as backing:
                path = backing.read().strip()
        except OSError:
            continue  # not a loop device, or not attached
        if path.startswith(basetemp):
            found.append(f"loop device {name} on {path}")
    return found


def _thins() -> list[str]:
    """Of all roots, for their names do not tell whose they are; where there is device-mapper there is one test run."""
    found = []
    for name in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{name}/dm/name", encoding="ascii", errors="replace") as file:
                found.append(file.read().strip())
        except OSError:
            continue  # not a device-mapper's, or removed meanwhile
    return [f"device-mapper device {name}" for name in found if name.startswith("fuse-aufs-")]


def _cgroups() -> list[str]:
    """Groups named as ours, unless a process of somebody else's is in or below them: other runs have such too."""
    members: dict[str, set[int]] = {}
    for directory, subdirectories, _ in os.walk(_CGROUP_ROOT):
        if directory.count("/") - _CGROUP_ROOT.count("/") > 4:
            subdirectories.clear()
        if "aufs" not in directory:
            continue
        try:
            with open(os.path.join(directory, "cgroup.procs"), encoding="ascii") as pids:
                members[directory] = {int(line) for line in pids}
        except OSError:
            continue  # removed meanwhile
    if not members:
        return []
    ours = processes() | {os.getpid()}
    foreign = [directory for directory, pids in members.items() if not pids <= ours]
    return [f"control group {d}" for d in members if not any(f"{other}/".startswith(f"{d}/") for other in foreign)]


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(f"descriptor {name} of {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # the listing's own
    return found
