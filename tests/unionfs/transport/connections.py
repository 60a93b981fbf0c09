"""The control files of FUSE connections (Documentation/filesystems/fuse.rst), where `fusectl` (conftest.py) is."""

from __future__ import annotations

from pathlib import Path

from unionfs.linux import mounts


def requests_waiting(path: str) -> int:
    """Of the mount at `path`: what its server has not answered (fs/fuse/control.c)."""
    return int(Path("/sys/fs/fuse/connections", connection(path), "waiting").read_text())


def connection(path: str) -> str:
    point = mounts.mount_of(path)
    assert point is not None
    return point.device.split(":")[1]
