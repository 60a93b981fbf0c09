"""Storage drivers: one Snapshotter interface, and the drivers behind it.

The interface, which imports nothing:

    api         the Snapshotter, its manual, and the values that it takes and gives; read this first
    errors      what can go wrong, as a tree

The rooms, each of which has a map of its own:

    disk/       what drivers have in common on a disk: trees, copies, durable writing, quotas, loop devices, locks
    graph/      the layer graph and its store, and as much of a Snapshotter as drivers have in common
    mounts/     trees, made of the Mount values that every driver answers with
    archive/    layer tars, read and written; over any mounts, whichever driver they come from
    diff/       what a snapshot changed: listed, written as a layer, applied to another

The drivers, none of which knows another:

    fuse_aufs, overlay2     directories of differences
    vfs                     full copies
    btrfs/                  subvolumes
    devicemapper/           thin devices
    zfs/                    datasets
    catalog                 each by its name; and whether it works here, in a sentence

Arrows (A <- B: B may import A): api, errors <- disk <- graph <- drivers <- catalog; disk <- mounts <- archive <- diff;
mounts <- fuse_aufs, overlay2.

A new driver is one file or folder, and one line of the catalog's table: with that it can be chosen and probed, and has
its options, everywhere. Its tests are the contract of every Snapshotter, a class of one line, and its row among the
arrows (tests/test_layering.py).

May import unionfs; is imported by runtime and benchmarks. A driver never mounts, hashes or reads a tar.
"""
