"""Drivers by name, their options, and whether each works in a place.

A driver is a module with

    OPTIONS                 its options (`--storage-opt NAME=VALUE`), name -> what the option says
    Driver(root, options)   a GraphSnapshotter on the directory `root`, which it makes if missing
    probe(directory, options) -> Probe   tries what it needs in a new, empty directory on the file system in question

and is imported when it is first asked for. A new one is a line in the table below; nothing else has to know of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Protocol, cast

from drivers.api import Probe
from drivers.disk import trees
from drivers.disk.ownership import check_mounted, check_way
from drivers.errors import Unavailable
from drivers.graph.layout import delete_unheld, make_locked
from drivers.graph.snapshotter import GraphSnapshotter
from drivers.graph.store import STORE
from unionfs.linux.mounts import mountinfo

MODULES = {
    "fuse-aufs": "drivers.fuse_aufs",
    "overlay2": "drivers.overlay2",
    "vfs": "drivers.vfs",
    "btrfs": "drivers.btrfs",
    "devicemapper": "drivers.devicemapper",
    "zfs": "drivers.zfs",
}
NAMES = tuple(MODULES)
_PROBE = ".fuse-aufs-probe-"
_ABOVE = 4  # a driver's root is ROOT/drivers/NAME, and ROOT may have been missing


class Module(Protocol):
    OPTIONS: Mapping[str, str]
    Driver: Callable[[str, Mapping[str, str]], GraphSnapshotter]

    def probe(self, directory: str, options: Mapping[str, str]) -> Probe: ...


def open_driver(name: str, root: str, options: Mapping[str, str] | None = None) -> GraphSnapshotter:
    """The driver `name` on the directory `root`, which is made if missing. To be closed by the caller.

    `options` are kept with the root, and hold for every later open that does not give others.
    Raises Unavailable, with a sentence for the user: no such driver or option, it does not work here, or `root` is
    another's.
    """
    module = _module(name)
    given = _known(name, module, options or {})
    # A root with a store was found to work when that was made. What has changed since, the first mount will say; asking
    # each time would cost every start of a container a few milliseconds.
    if not os.path.exists(os.path.join(root, STORE)):
        check_mounted(root)
        check_way(root)
        found = probe(name, root, given)
        if not found.works:
            raise Unavailable(f"storage driver {name} does not work at {root}: {found.reason}")
    try:
        return module.Driver(root, given)
    except OSError as error:
        raise Unavailable(f"cannot use {root}: {error.strerror}") from error


def probe(name: str, root: str, options: Mapping[str, str] | None = None) -> Probe:
    """Try what the driver needs, on the file system that `root` is or would be on; leaves nothing there.

    Raises Unavailable for a name that no driver has.
    """
    module = _module(name)
    place = os.path.realpath(root)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    if os.geteuid():
        return Probe(False, "mounting needs root")
    _take_back(place)
    try:
        place_fd = os.open(place, trees.DIRECTORY)
    except OSError as error:
        return Probe(False, f"cannot use {place}: {error.strerror}")
    try:
        works, reason = _try(module, place, place_fd, options or {})
    finally:
        os.close(place_fd)
    return Probe(works, f"{reason}, on {_file_system(place)}" if works else reason)


def _take_back(place: str) -> None:
    """Delete what killed processes were trying things in: there, or above, where less of the root existed then."""
    for _ in range(_ABOVE):
        with suppress(OSError):
            fd = os.open(place, trees.DIRECTORY)
            try:
                for name in os.listdir(place):
                    if name.startswith(_PROBE):
                        delete_unheld(fd, name)
            finally:
                os.close(fd)
        place = os.path.dirname(place)


def _try(module: Module, place: str, place_fd: int, options: Mapping[str, str]) -> Probe:
    try:
        name, held = make_locked(place_fd, _PROBE)
    except OSError as error:
        return Probe(False, f"cannot write to {place}: {error.strerror}")
    try:
        return module.probe(os.path.join(place, name), options)
    except OSError as error:
        return Probe(False, f"cannot be tried at {place}: {error.strerror}")
    finally:
        trees.delete(place_fd, name)
        os.close(held)


def options_of(name: str) -> Mapping[str, str]:
    """The options of the driver `name`, each with what it says. Raises Unavailable for a name that no driver has."""
    return _module(name).OPTIONS


def _module(name: str) -> Module:
    if name not in MODULES:
        raise Unavailable(f"there is no storage driver {name!r}; there are {', '.join(NAMES)}")
    return cast(Module, import_module(MODULES[name]))


def _known(name: str, module: Module, options: Mapping[str, str]) -> Mapping[str, str]:
    for option in options:
        if option not in module.OPTIONS:
            has = f"it has {', '.join(module.OPTIONS)}" if module.OPTIONS else "it has none of its own"
            raise Unavailable(f"storage driver {name} has no option {option!r}; {has}")
    return options


def _file_system(path: str) -> str:
    """The type of the file system that `path` is on, by the mount that an open descriptor names (proc(5), fdinfo)."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
            mount_id = next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
    finally:
        os.close(fd)
    return next((point.fstype for point in mountinfo() if point.mount_id == mount_id), "an unknown file system")
