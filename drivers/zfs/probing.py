"""Whether zfs works here, and below which dataset the layers of a root go."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from drivers.api import Probe
from drivers.errors import Unavailable
from drivers.zfs.command import missing, zfs, zpool
from unionfs.linux.mounts import mountinfo

OPTIONS = {"zfs.fsname": "the dataset below which layers are kept, as tank/containers (the one that the root is on)"}

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]*(/[A-Za-z0-9_.:-]+)*")


def probe(directory: str, options: Mapping[str, str]) -> Probe:
    """`directory` is on the file system that the root would be on. Makes nothing."""
    if reason := missing():
        return Probe(False, reason)
    try:
        place = place_of(directory, options)
        pool = place.partition("/")[0]
        if zfs("get", "-H", "-ovalue", "type", place).strip() != "filesystem":
            return Probe(False, f"{place} is not a zfs file system: layers are datasets below one")
        health, readonly = zpool("list", "-H", "-ohealth,readonly", pool).split()
    except Unavailable as error:
        return Probe(False, str(error))
    except FileNotFoundError:
        return Probe(False, f"there is no dataset {place}: zpool import, or zfs create {place}")
    if health not in ("ONLINE", "DEGRADED") or readonly == "on":
        how = "read-only" if readonly == "on" else health
        return Probe(False, f"the pool {pool} is {how}: see zpool status {pool}")
    return Probe(True, f"datasets below {place}")


def place_of(directory: str, options: Mapping[str, str]) -> str:
    """The dataset below which a root's go: the option's, or the one that the root is on. Raises Unavailable."""
    if "zfs.fsname" in options:
        name = options["zfs.fsname"]
        if not _NAME.fullmatch(name):
            raise Unavailable(f"zfs.fsname={name} names no dataset: write it as in zfs.fsname=tank/containers")
        return name
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for point in mountinfo():
        if point.device == number and point.fstype == "zfs":
            return point.source
    raise Unavailable(
        f"{directory} is not on zfs: say below which dataset layers go, by --storage-opt zfs.fsname=POOL/DATASET"
    )
