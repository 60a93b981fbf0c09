"""The driver `btrfs`: every snapshot is a subvolume, and a child begins as a snapshot of its parent's.

    <id>/fs         the subvolume with the whole tree; a view of a parent has an empty directory, and the parent's tree
                    is mounted
    <id>/settled    exists while a commit puts a plain tree in the place of one with subvolumes in it

Where the root is on btrfs the driver uses that; elsewhere a file with a btrfs in it (drivers.btrfs.image).

A snapshot costs nothing until something in it is changed, and the number of layers below it nothing at all. usage() is
what it has changed against its parent, read from the changed leaves of its tree: inodes made or changed, its root
always among them, and bytes of the extents written. Blocks that it has only ceased to refer to are not taken off.

Modules:

    subvolumes  the ioctls: making, snapshotting, searching subvolumes, and destroying them with what is nested in them
    qgroups     quotas
    image       the file system of a root that is not on btrfs
    driver      the Snapshotter
"""

from drivers.btrfs.driver import OPTIONS, Driver, probe

__all__ = ["OPTIONS", "Driver", "probe"]
