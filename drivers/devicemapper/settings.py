"""The driver's options, by docker's names, with docker's defaults and meanings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import NamedTuple

from drivers.disk.sizes import parse_size
from drivers.errors import Unavailable

OPTIONS: Mapping[str, str] = {
    "dm.datadev": "block device for the pool's data (with dm.metadatadev); without it a sparse file in the root",
    "dm.metadatadev": "block device for the pool's metadata",
    "dm.directlvm_device_force": "true: make the pool on these two whatever is on them, unless it is in use (false)",
    "dm.thinpooldev": "a thin pool that is there already, unused: its device-mapper name, or /dev/mapper/NAME",
    "dm.basesize": "size of the file system of every layer and container (10G); can be raised for new layers",
    "dm.fs": "ext4 (the default) or xfs",
    "dm.blocksize": "size of the blocks in which the pool gives out space (64K); a multiple of 64K up to 1G",
    "dm.min_free_space": "refuse new layers and containers when less of data or metadata is free (10%)",
    "dm.mkfsarg": "further arguments for mkfs, separated by blanks",
    "dm.mountopt": "further mount options, separated by commas",
    "dm.loopdatasize": "size of the sparse file for data (100G); can be raised",
    "dm.loopmetadatasize": "size of the sparse file for metadata (2G); can be raised",
    "dm.blkdiscard": "give the space of deleted layers back to the disk (true on files, false on devices)",
}

# What the pool and the base device are made with.
FIXED = frozenset(
    {"dm.datadev", "dm.metadatadev", "dm.thinpooldev", "dm.fs", "dm.blocksize", "dm.mkfsarg"}
)

# Those of them that may get another name later: they are recognised by what is on them.
RENAMED = frozenset({"dm.datadev", "dm.metadatadev", "dm.thinpooldev"})

# Documentation/admin-guide/device-mapper/thin-provisioning.rst; the kernel uses no more metadata than 16 GiB.
BLOCK_UNIT, MAX_BLOCK = 64 << 10, 1 << 30
MIN_METADATA = 2 << 20
# Below this size mkfs.xfs refuses, and an ext4 has no room for a journal.
MIN_BASE = {"ext4": 16 << 20, "xfs": 300 << 20}


class Settings(NamedTuple):
    """Sizes in bytes; "" for a device that was not given, and None for a size that was not."""

    data_device: str
    metadata_device: str
    pool_device: str
    base_size: int | None
    filesystem: str
    block_size: int
    min_free_percent: float
    mkfs_arguments: tuple[str, ...]
    mount_options: tuple[str, ...]
    loop_data_size: int | None
    loop_metadata_size: int | None
    discard_deleted: bool
    force: bool


DEFAULT_BASE, DEFAULT_DATA, DEFAULT_METADATA = 10 << 30, 100 << 30, 2 << 30


def parse_settings(options: Mapping[str, str]) -> Settings:
    """Raises Unavailable with a sentence for an impossible value, or two that exclude each other."""
    data, metadata, pool = (options.get(f"dm.{name}", "") for name in ("datadev", "metadatadev", "thinpooldev"))
    if bool(data) != bool(metadata):
        raise Unavailable("dm.datadev and dm.metadatadev go together: give both, or neither for files in the root")
    if pool and data:
        raise Unavailable("dm.thinpooldev is a pool with its own data and metadata: leave out dm.datadev")
    for name in ("dm.loopdatasize", "dm.loopmetadatasize"):
        if name in options and (pool or data):
            raise Unavailable(f"{name} is the size of a file, and the pool is on block devices: leave it out")
    filesystem = options.get("dm.fs", "ext4")
    if filesystem not in MIN_BASE:
        raise Unavailable(f"dm.fs={filesystem} is not supported: choose ext4 or xfs")
    block = parse_size(options.get("dm.blocksize", "64K"), "dm.blocksize")
    if not BLOCK_UNIT <= block <= MAX_BLOCK or block % BLOCK_UNIT:
        raise Unavailable("dm.blocksize must be a multiple of 64K, from 64K to 1G")
    return Settings(
        data_device=data,
        metadata_device=metadata,
        pool_device=pool,
        base_size=_at_least(options, "dm.basesize", MIN_BASE[filesystem]),
        filesystem=filesystem,
        block_size=block,
        min_free_percent=_percent(options.get("dm.min_free_space", "10%")),
        mkfs_arguments=_words(options.get("dm.mkfsarg", "")),
        mount_options=tuple(filter(None, options.get("dm.mountopt", "").split(","))),
        loop_data_size=_at_least(options, "dm.loopdatasize", block),
        loop_metadata_size=_at_least(options, "dm.loopmetadatasize", MIN_METADATA),
        discard_deleted=_truth(options, "dm.blkdiscard", not (pool or data)),
        force=_truth(options, "dm.directlvm_device_force", False),
    )


def _at_least(options: Mapping[str, str], name: str, least: int) -> int | None:
    if name not in options:
        return None
    size = parse_size(options[name], name)
    if size < least:
        raise Unavailable(f"{name}={options[name]} is too small: it must be at least {least >> 10}K")
    return size


def _percent(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,2}(?:\.[0-9]+)?)%", text)
    if match is None:
        raise Unavailable(f"dm.min_free_space={text} is not a percentage below 100: write dm.min_free_space=10%")
    return float(match[1])


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise Unavailable(f"dm.mkfsarg={text} cannot be split into words: {error}") from None


def _truth(options: Mapping[str, str], name: str, default: bool) -> bool:
    text = options.get(name, str(default).lower())
    if text not in ("true", "false"):
        raise Unavailable(f"{name}={text} must be true or false")
    return text == "true"
