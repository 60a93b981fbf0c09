"""Mounting in another mount namespace (mount(8), -N)."""

from __future__ import annotations

import os

from unionfs.linux import consts, processes


def enter(name: str) -> None:
    """From now on this process is in the mount namespace of the process `name`, or of which `name` is a file. Relative
    paths begin at its root. Raises OSError that names it.

    Everything that a server needs is read before: our modules need not be there.
    """
    import json
    import threading

    from unionfs.transport import background, branches, delivery, direct, info, remount, unmount

    del json, threading, background, branches, delivery, direct, info, remount, unmount
    path = f"/proc/{name}/ns/mnt" if name.isdecimal() else name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            processes.setns(fd, consts.CLONE_NEWNS)
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, f"the namespace cannot be entered ({error.strerror})", path) from None
