"""Storage drivers: one Snapshotter interface, and the drivers behind it.

    errors        what can go wrong, as a tree
    api           the interface and its manual; read this first
    disk/         what drivers share of a disk: trees, copies, durable writing, quotas, loop devices, locks
    graph/        the layer graph and its store; a Snapshotter as far as drivers have it in common
    mounts/       trees, made of the Mount values that every driver answers with
    fuse_aufs, overlay2, vfs, btrfs/, devicemapper/, zfs/
    catalog       a driver by its name; whether it works here, in a sentence
    archive/      layer tars, read and written; over any mounts, whichever driver they come from
    diff/         what a snapshot changed: told, written as a layer, applied to another

May import unionfs; is imported by runtime and benchmarks. A driver never mounts, hashes or reads a tar.
"""
