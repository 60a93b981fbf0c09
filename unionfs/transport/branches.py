"""From a plan's paths to open branches: where they lie in respect to each other, and why one cannot be used.

Every refusal is an OSError(errno, what is wrong; what to do, path).
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from typing import NoReturn

from unionfs.linux.mounts import mounted_at
from unionfs.options import MountPlan
from unionfs.transport import device
from unionfs.union.branch import Branch


def resolve(plan: MountPlan, target: str | None) -> MountPlan:
    """The plan with absolute paths free of symbolic links, which overlap neither each other nor the mount point
    `target`, where there is one."""
    ancestry = [] if target is None else [(target, "mount point", _ancestors(target))]
    branches = []
    for branch in plan.branches:
        _directory(branch.path, "branch", "create it or correct the list of branches")
        path = os.path.realpath(branch.path)
        branches.append(replace(branch, path=path))
        ancestry.append((path, "branch", _ancestors(path)))
    for at, (path, what, ancestors) in enumerate(ancestry):
        for other, other_what, other_ancestors in ancestry[:at]:
            if ancestors[0] == other_ancestors[0]:
                same = "given twice; name each branch once" if other_what == what else "also the mount point"
                _refuse(errno.EINVAL, f"the {what} is {same}", path)
            if other_ancestors[0] in ancestors:
                _refuse(errno.EINVAL, f"the {what} lies inside the {other_what} {other}; choose another", path)
            if ancestors[0] in other_ancestors:
                _refuse(errno.EINVAL, f"the {other_what} lies inside the {what} {path}; choose another", other)
    if plan.workdir is not None:
        _directory(plan.workdir, "workdir", "create it or leave the option out")
    return replace(plan, branches=tuple(branches))


def open_branches(plan: MountPlan) -> list[Branch]:
    """The branches of a resolved plan, top first. On failure none stays open."""
    opened: list[Branch] = []
    try:
        for branch in plan.branches:
            try:
                opened.append(Branch.open(os.fsencode(branch.path), branch.permission))
                opened[-1].note_access(plan.flags)
            except OSError as error:
                _refuse(error.errno or errno.EIO, _why(error, branch.permission), branch.path)
    except BaseException:
        for one in opened:
            one.close()
        raise
    return opened


def probe_writable(path: str) -> None:
    """Whether the directory `path` can be a writable branch here: the OSError of `Branch.open` if it cannot."""
    Branch.open(os.fsencode(path), "rw").close()


def mount_point(path: str) -> str:
    """The directory `path`, on which no union is mounted, absolute and free of symbolic links."""
    # Before any stat: that of a mount whose server was killed fails with ENOTCONN.
    target = os.path.realpath(path)
    point = mounted_at(target)
    if point is not None and device.identity_of(point):
        _refuse(errno.EBUSY, f"already mounted; run 'unionfs umount {path}' first", path)
    _directory(path, "mount point", "create it with mkdir")
    return target


def _directory(path: str, what: str, remedy: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        _refuse(error.errno or errno.EIO, f"the {what} cannot be used ({error.strerror}); {remedy}", path)
    if not stat.S_ISDIR(mode):
        _refuse(errno.ENOTDIR, f"the {what} is not a directory; {remedy}", path)


def _ancestors(path: str) -> list[tuple[int, int]]:
    """(st_dev, st_ino) of `path` and of all directories above it: bind mounts give one directory several paths."""
    found = []
    while True:
        entry = os.stat(path)
        found.append((entry.st_dev, entry.st_ino))
        if path == "/":
            return found
        path = os.path.dirname(path)


def _why(error: OSError, permission: str) -> str:
    text = error.strerror or str(error)
    remedies = {
        errno.EPERM: text,
        errno.EACCES: "the branch cannot be read; change its mode or run as root",
        errno.EROFS: "the branch is on a read-only file system; mark it =ro or choose another",
        errno.EBUSY: f"{text}; unmount that first, or mark this one =ro",
        errno.EOPNOTSUPP: f"{text}; put the writable branch on ext4, xfs, btrfs or tmpfs, or mark it =ro",
    }
    role = "writable branch" if permission == "rw" else "branch"
    return remedies.get(error.errno or 0, f"the {role} cannot be used ({text})")


def _refuse(code: int, sentence: str, path: str) -> NoReturn:
    raise OSError(code, sentence, path)
