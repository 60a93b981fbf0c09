"""A mount namespace of the run's own.

A FUSE mount ends when the last namespace that has it lets go, and only then does its server end. A process that makes a
namespace while a union is measured (a container's start does) would copy the mount and hold it; and this run would hold
other people's mounts for minutes.
"""

from __future__ import annotations

import os

from unionfs.linux import consts, mounts, processes


def isolate(work: str) -> None:
    """Leave the mount namespace that others see, for good; of FUSE mounts only that of `work` comes along.

    What is unmounted outside later is unmounted here too, where its propagation says so (MS_SLAVE, mount(2)).
    Raises OSError: without CAP_SYS_ADMIN, or where there is no `work`.
    """
    device = os.stat(work).st_dev
    processes.unshare(consts.CLONE_NEWNS)
    mounts.mount("none", "/", None, consts.MS_REC | consts.MS_SLAVE)
    for point in reversed(mounts.mountinfo()):
        if point.fstype.split(".")[0] == "fuse" and point.device != f"{os.major(device)}:{os.minor(device)}":
            mounts.umount2(point.target, consts.MNT_DETACH)
