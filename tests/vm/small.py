"""Options with which each driver's disk is small enough for a guest."""

from __future__ import annotations

from collections.abc import Mapping

from tests.drivers.zfs.pools import OPTIONS as ZFS_OPTIONS

OPTIONS: dict[str, Mapping[str, str]] = {
    "btrfs": {"btrfs.loopsize": "512M"},
    "devicemapper": {"dm.loopdatasize": "600M", "dm.loopmetadatasize": "4M", "dm.basesize": "96M"},
    "zfs": ZFS_OPTIONS,
}
