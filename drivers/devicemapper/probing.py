"""Whether the driver works in a place."""

from __future__ import annotations

import os
from collections.abc import Mapping

from drivers.api import Probe
from drivers.devicemapper import filesystem, ioctl
from drivers.devicemapper.pool import NO_THIN_POOLS
from drivers.devicemapper.settings import parse_settings
from drivers.disk import loop
from drivers.disk.programs import find
from drivers.errors import Unavailable


def probe(directory: str, given: Mapping[str, str]) -> Probe:
    """Whether the kernel has thin pools, and the programs that making one takes are installed."""
    settings = parse_settings(given)
    try:
        os.close(ioctl.open_control())
    except OSError as error:
        return Probe(False, f"{error.strerror}")
    if ioctl.target_version("thin-pool") is None:
        return Probe(False, NO_THIN_POOLS)
    for program, package in (
        (f"mkfs.{settings.filesystem}", filesystem.PACKAGE[settings.filesystem]),
        ("thin_check", "thin-provisioning-tools"),
    ):
        if find(program) is None:
            return Probe(False, f"{program} is not installed: apt-get install {package}")
    if settings.pool_device:
        return Probe(True, f"thin devices in the pool {settings.pool_device}")
    if settings.data_device:
        return Probe(True, f"a thin pool on {settings.data_device}")
    path = os.path.join(directory, "loop")
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    try:
        with loop.attached(path):
            pass
    except Unavailable as error:
        return Probe(False, str(error))
    return Probe(True, "a thin pool on files; for much writing give it block devices (dm.datadev, dm.metadatadev)")
