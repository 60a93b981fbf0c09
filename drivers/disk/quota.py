"""Project quotas: how much may be written to the layer of a container, on a file system that can limit that.

A directory with a project id and FS_XFLAG_PROJINHERIT gives the id to all that is made in it, and the file system
counts, and limits, what all files of a project take (ext4, XFS; xfs_quota(8), tune2fs(8)). Each limited layer has a
project of its own.

No list of ids is kept: one that has neither files nor a limit is free, and it becomes free again when the last of its
files goes. So we take none that somebody else uses, and a crash loses none. Two processes may find the same one free:
both put their directories into it, and whoever then finds more than its own in there takes the next. Which one a
snapshot was given is in a file beside its layer, since root in a container can put the layer into another's project
(chattr -p): then removing the one would free the other of its limit.

Whoever has CAP_SYS_RESOURCE is not limited by ext4 (ignore_hardlimit(), fs/quota/dquot.c). Overlayfs writes as whoever
mounted it and a union as its server, so these go without it (drivers.mounts.overlayfs, unionfs.transport.serving).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from drivers.disk import trees
from drivers.disk.trees import DIRECTORY
from drivers.errors import NotSupported
from unionfs.linux import consts, quotactl
from unionfs.linux.files import get_fsxattr, set_fsxattr
from unionfs.linux.mounts import MountPoint, mountinfo

# Above what administrators write into /etc/projects, and what others allot by counting from 1 or from 2^20.
FIRST_PROJECT = 0x4000_0000
LAST_PROJECT = 0x7FFF_FFFF
_RECORD = "project"  # in a snapshot's directory

_FSXATTR = struct.Struct("=5I8x")  # struct fsxattr: fsx_xflags, fsx_extsize, fsx_nextents, fsx_projid, fsx_cowextsize
_REGISTERS = ("/etc/projects", "/etc/projid")  # "ID:DIRECTORY" and "NAME:ID", projects(5), projid(5)


def require_quotas(path: str) -> None:
    """Raise NotSupported, with what to do about it, unless project quotas are enforced where `path` is."""
    fd = os.open(path, DIRECTORY)
    try:
        if quotactl.limits_are_enforced(fd):
            return
        status = os.fstat(fd)
    finally:
        os.close(fd)
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    point = next((point for point in mountinfo() if point.device == device), None)
    raise NotSupported(
        f"the size of a container cannot be limited (--storage-opt size=) in {path}: {_advice(point)}, or leave it out"
    )


def _advice(point: MountPoint | None) -> str:
    kind = point.fstype if point else "this file system"
    place = f"{kind} at {point.target} on {point.source}" if point else kind
    if kind == "ext4":
        return (
            f"{place} has no project quotas; switch them on with `tune2fs -O project,quota -Q prjquota DEVICE` while "
            "it is not mounted, and mount it with the option prjquota"
        )
    if kind in ("xfs", "f2fs"):
        return f"{place} does not enforce project quotas; mount it with the option prjquota"
    return f"{kind} has no project quotas; choose btrfs, devicemapper or zfs, or a root on xfs or ext4"


def limit_directories(directories: Sequence[str], size: int) -> None:
    """Limit what these new, empty directories, all in the directory of one snapshot, may take together to `size` bytes.

    More is EDQUOT on ext4 and ENOSPC on XFS. Raises OSError.
    """
    with ExitStack() as held:
        fds = []
        for path in directories:
            fds.append(os.open(path, DIRECTORY))
            held.callback(os.close, fds[-1])
        for project in _free_projects(fds[0]):
            for fd in fds:
                _set_project(fd, project)
            if quotactl.get(fds[0], project).inodes == len(fds):
                _record(os.path.dirname(directories[0]), project)
                quotactl.set_limit(fds[0], project, size)
                for fd in fds:
                    os.fsync(fd)
                return
            # Another process has found it free at the same moment, and may have it.
    raise NotSupported(f"no project id is free for {directories[0]}: a billion others are in use there")


def delete_with_project(parent_fd: int, name: str) -> None:
    """trees.delete() of a snapshot's directory, whose layer `fs` may have a project, which goes with it."""
    fd = os.open(name, DIRECTORY, dir_fd=parent_fd)
    try:
        project, unrecorded = _recorded(fd), 0
        if project:
            # First, for nobody would know afterwards whose limit it was. Without files and limit there is no project.
            quotactl.set_limit(fd, project, 0)
        else:
            unrecorded = _own_project(fd)  # one that an older version gave it, or that it gave itself
        # Directories are moved up to here while they are deleted, and cannot be moved from one project into another
        # that is inherited there (EXDEV); and the container may have given any project to its own directories.
        _inherit_no_project(fd)
    finally:
        os.close(fd)
    trees.delete(parent_fd, name)
    if unrecorded and not quotactl.get(parent_fd, unrecorded).inodes:
        quotactl.set_limit(parent_fd, unrecorded, 0)


def _record(directory: str, project: int) -> None:
    with open(os.path.join(directory, _RECORD), "w", encoding="ascii") as file:
        file.write(f"{project}\n")
        file.flush()
        os.fsync(file.fileno())


def _recorded(directory_fd: int) -> int:
    """0 if no project was given to the snapshot."""
    try:
        fd = os.open(_RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return 0
    try:
        text = os.read(fd, 32).decode("ascii", "replace").strip()
    finally:
        os.close(fd)
    return int(text) if text.isdecimal() and FIRST_PROJECT <= int(text) <= LAST_PROJECT else 0


def _own_project(directory_fd: int) -> int:
    """The project of the layer in a snapshot's directory; 0 for none, or if everything around it is in it too."""
    try:
        fd = os.open("fs", DIRECTORY, dir_fd=directory_fd)
    except FileNotFoundError:
        return 0
    try:
        project = _project(fd)
        return project if FIRST_PROJECT <= project <= LAST_PROJECT and project != _project(directory_fd) else 0
    finally:
        os.close(fd)


def _free_projects(fd: int) -> Iterator[int]:
    registered = _registered()
    for project in range(FIRST_PROJECT, LAST_PROJECT + 1):
        used = quotactl.get_next(fd, project)
        is_used = used is not None and used.project == project and (used.limit or used.inodes)
        if not is_used and project not in registered:
            yield project


def _registered() -> set[int]:
    """Ids that the administrator has given names or directories, which need not have any files yet."""
    found = set()
    for register in _REGISTERS:
        try:
            with open(register, encoding="utf-8", errors="replace") as lines:
                found |= {int(field) for line in lines for field in line.strip().split(":") if field.isdecimal()}
        except OSError:
            continue
    return found


def _project(fd: int) -> int:
    """The project of a file; 0 also where the file system has none."""
    try:
        return int(_FSXATTR.unpack(get_fsxattr(fd))[3])
    except OSError:
        return 0


def _inherit_no_project(fd: int) -> None:
    try:
        flags, *rest = _FSXATTR.unpack(get_fsxattr(fd))
    except OSError:
        return  # there are none
    if flags & consts.FS_XFLAG_PROJINHERIT:
        set_fsxattr(fd, _FSXATTR.pack(flags & ~consts.FS_XFLAG_PROJINHERIT, *rest))


def _set_project(fd: int, project: int) -> None:
    flags, extent_size, extents, _, cow_extent_size = _FSXATTR.unpack(get_fsxattr(fd))
    flags |= consts.FS_XFLAG_PROJINHERIT
    set_fsxattr(fd, _FSXATTR.pack(flags, extent_size, extents, project, cow_extent_size))
