"""`unionfs info`: what the server of a mount says of itself. Imports neither trio nor pyfuse3.

Asking sends no request to the mount, so that its counts show what others did: it is found by its mount id, and the
server is asked by its control socket.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from typing import TypedDict, cast

from unionfs.linux.mounts import mount_of
from unionfs.transport import control, device
from unionfs.union.branch import Branch


class TransportFacts(TypedDict):
    name: str
    reason: str


class PassthroughFacts(TypedDict):
    enabled: bool
    reason: str


# What `Facts.lends` means.
_LOWER_FILES = {
    "programs": "programs and libraries are read by the kernel itself",
    "all": "read by the kernel itself: who has one open for reading does not see a later change",
    "none": "read through the server",
}


class BranchFacts(TypedDict):
    path: str
    permission: str
    guarded: bool  # the kernel itself refuses to write there: see union.branch


class Facts(TypedDict):
    """What `unionfs info --json` prints. Branches have the top first."""

    transport: TransportFacts
    protocol: str | None  # "7.45"; None: libfuse agreed on it
    flags: list[str]  # of FUSE_INIT, agreed on
    missing: list[str]  # wished for, and not offered by the kernel
    passthrough: PassthroughFacts
    lends: str  # which lower files the kernel reads by itself: serve.lending.LENDS
    volatile: bool
    xino: str
    spin_us: int
    branches: list[BranchFacts]
    nodes: int
    open_files: int
    requests: dict[str, int] | None  # by opcode; None: not counted
    started: float  # seconds since the epoch
    pid: int  # as the server sees it


def branch_facts(branches: Sequence[Branch]) -> list[BranchFacts]:
    return [{"path": os.fsdecode(b.path), "permission": b.permission, "guarded": b.guarded} for b in branches]


def ask(mountpoint: str) -> Facts:
    """The facts of the union mounted at `mountpoint`.

    Raises OSError(errno, what is wrong, mountpoint): ENOENT and others for the path; EINVAL, no union is mounted
    there; ENOTCONN, its server has died or is out of reach; ETIMEDOUT, it does not answer; EPROTO, it cannot.
    """
    point = mount_of(mountpoint)
    identity = None if point is None else device.identity_of(point)
    if identity is None:
        raise OSError(errno.EINVAL, "no union is mounted there", mountpoint)
    try:
        said = control.ask(identity, control.INFO)
    except TimeoutError as error:
        raise OSError(errno.ETIMEDOUT, f"its server does not answer{_because_of(error)}", mountpoint) from None
    if said is None:
        raise OSError(
            errno.ENOTCONN,
            "its server cannot be reached: it has died, or it is another user's or has another /run",
            mountpoint,
        )
    import json

    facts = json.loads(said)
    if "error" in facts:
        raise OSError(errno.EPROTO, facts["error"], mountpoint)
    return cast(Facts, facts)


def _because_of(error: OSError) -> str:
    return f": {error.strerror}" if error.strerror else ""


def text(facts: Facts, mountpoint: str) -> str:
    """The facts for a reader: lines of `Name: value`, lists going on below."""
    rows: list[tuple[str, Sequence[str]]] = [
        ("Mount point", [_printable(mountpoint)]),
        ("Server", [f"process {facts['pid']}, up {_duration(time.time() - facts['started'])}"]),
        ("Transport", [_because(facts["transport"]["name"], facts["transport"]["reason"])]),
        ("Protocol", [f"{facts['protocol'] or 'as libfuse agreed on'}, Linux {os.uname().release}"]),
        ("Agreed on", [_flags(facts["flags"])]),
        ("Not offered", [_flags(facts["missing"])]),
        ("Passthrough", [_because("yes" if facts["passthrough"]["enabled"] else "no", facts["passthrough"]["reason"])]),
        ("Lower files", [_LOWER_FILES[facts["lends"] if facts["passthrough"]["enabled"] else "none"]]),
        ("Spin", [f"{facts['spin_us']} microseconds" if facts["spin_us"] else "off"]),
        ("Branches", [_branch(branch) for branch in facts["branches"]]),
        ("Nodes", [str(facts["nodes"])]),
        ("Open files", [str(facts["open_files"])]),
        ("Requests", _requests(facts["requests"])),
    ]
    lines = []
    for name, values in rows:
        for at, value in enumerate(values):
            if value:
                lines.append(f"{'' if at else name + ':':14}{value}\n")
    return "".join(lines)


def _because(word: str, reason: str) -> str:
    return f"{word}: {reason}" if reason else word


def _flags(names: Sequence[str]) -> str:
    return ", ".join(name.removeprefix("FUSE_").lower() for name in names)


def _branch(branch: BranchFacts) -> str:
    return f"{branch['permission']}  {_printable(branch['path'])}{' (guarded)' if branch['guarded'] else ''}"


def _requests(counts: dict[str, int] | None) -> list[str]:
    if counts is None:
        return ["not counted by this transport"]
    asked = sorted((-count, name) for name, count in counts.items() if count)
    width = max((len(str(-count)) for count, _ in asked), default=0)
    return [f"{-count:{width}}  {name}" for count, name in asked] or ["none"]


def _printable(path: str) -> str:
    return path if path.isprintable() else ascii(path)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{number} {unit}" for number, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if number]
    return " ".join([*parts[:2], f"{seconds} s"] if len(parts) < 2 else parts[:2])
