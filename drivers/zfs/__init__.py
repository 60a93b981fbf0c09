"""The driver `zfs`: a dataset per layer, a snapshot of it once it is committed, and clones of that for layers above.

    tank/containers                              --storage-opt zfs.fsname=, or the dataset that the root directory is on
    tank/containers/fuse-aufs-3f2a…              one per root directory; made by whoever opens it first
        …/9c41… ── @layer-77d0…                  committed; mounted read-only as …/9c41…@layer-77d0… for its views
                       └── clone …/e05b…         active; Mount("zfs", ".../e05b…")

Modules:

    command     runs zfs(8) and zpool(8); what they say becomes an OSError
    probing     whether that works here, and below which dataset
    top         the dataset of one root, which all its others are below
    driver      the Snapshotter

Why a crash leaves nothing
==========================

Datasets have names of a count and random digits, and the store's table `datasets` has them by number. So a dataset
exists for good when, and only when, the transaction that adds its row says so; what no row names is garbage: half-made,
given up, or removed. No dataset is renamed, and none is made or destroyed inside a transaction, where everybody would
wait for the disk.

What somebody alive is still making is told from garbage by a lock: whoever makes something holds it shared until the
row is there, and cleanup() takes it exclusively for as long as it looks. The zfs command inherits the descriptor, so
that one whose parent was killed holds the lock until it is done.

Why `quota`, and not `refquota`
===============================

A size limits the bytes that a container may write. `refquota` limits what a dataset refers to, and a clone refers to
all of its image: it would be over the limit at birth, or the limit would have to differ from image to image. `quota`
limits what is the dataset's own. It counts snapshots that others take of the container as well, which then cost the
container room.
"""

from drivers.zfs.driver import Driver
from drivers.zfs.probing import OPTIONS, probe

__all__ = ["OPTIONS", "Driver", "probe"]
