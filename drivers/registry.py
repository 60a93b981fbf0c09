"""Drivers by name, and whether each works in a place."""

from __future__ import annotations

import os

from drivers import fuse_aufs, overlay2, trees, vfs
from drivers.api import Probe, Snapshotter
from drivers.directories import STORE, DirectorySnapshotter
from drivers.errors import Unavailable
from unionfs.linux.mounts import mountinfo

_DRIVERS = {
    "fuse-aufs": (fuse_aufs.FuseAufs, fuse_aufs.probe),
    "overlay2": (overlay2.Overlay2, overlay2.probe),
    "vfs": (vfs.Vfs, vfs.probe),
}
NAMES = tuple(_DRIVERS)


def open_driver(name: str, root: str) -> Snapshotter:
    """The driver `name` on the directory `root`, which is made if missing. To be closed by the caller.

    Raises Unavailable, with a sentence for the user: no such driver, it does not work here, or `root` is another's.
    """
    if name not in _DRIVERS:
        raise Unavailable(f"there is no storage driver {name!r}; there are {', '.join(NAMES)}")
    # A root with a store was found to work when that was made. What has changed since, the first mount will say; asking
    # each time would cost every start of a container a few milliseconds.
    if not os.path.exists(os.path.join(root, STORE)):
        found = probe(name, root)
        if not found.works:
            raise Unavailable(f"storage driver {name} does not work at {root}: {found.reason}")
    try:
        driver: DirectorySnapshotter = _DRIVERS[name][0](root, name)
    except OSError as error:
        raise Unavailable(f"cannot use {root}: {error.strerror}") from error
    return driver


def probe(name: str, root: str) -> Probe:
    """Try what the driver needs, on the file system that `root` is or would be on; leaves nothing there.

    Raises Unavailable for a name that no driver has.
    """
    if name not in _DRIVERS:
        raise Unavailable(f"there is no storage driver {name!r}; there are {', '.join(NAMES)}")
    place = os.path.realpath(root)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    if os.geteuid():
        return Probe(False, "mounting needs root")
    directory = os.path.join(place, f".probe-{os.urandom(8).hex()}")
    try:
        os.mkdir(directory, 0o700)
    except OSError as error:
        return Probe(False, f"cannot write to {place}: {error.strerror}")
    try:
        works, reason = _DRIVERS[name][1](directory)
    except OSError as error:
        return Probe(False, f"cannot be tried at {place}: {error.strerror}")
    finally:
        trees.delete_path(directory)
    return Probe(works, f"{reason}, on {_file_system(place)}" if works else reason)


def _file_system(path: str) -> str:
    """The type of the file system that `path` is on, by the mount that an open descriptor names (proc(5), fdinfo)."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
            mount_id = next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
    finally:
        os.close(fd)
    return next((point.fstype for point in mountinfo() if point.mount_id == mount_id), "an unknown file system")
