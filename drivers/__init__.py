"""Storage drivers: one Snapshotter interface, and the drivers behind it.

    errors        what can go wrong, as a tree
    api           the interface and its manual; read this first
    mounts        Mount, the value every driver answers with, and the functions that turn mounts into a tree
    metadata      the store of one driver: the layer graph in sqlite, transactions
    graph         a Snapshotter as far as it is the graph: what all drivers share
    layout        the directories of one driver: new-X -> id -> rm-id
    directories   a Snapshotter whose layers are directories
    fuse_aufs, overlay2, vfs
    locks, sizes  file locks with a bound; sizes as options have them
    programs      where the programs of the system are
    copytree      a faithful copy of a tree (vfs), and of one entry
    marks         what directories of differences say of names that are not in them
    registry      a driver by its name; whether it works here, in a sentence
    archive/      layer tars, read and written; over any mounts, whichever driver they come from
    diff/         what a snapshot changed: told, written as a layer, applied to another

May import unionfs; is imported by runtime and benchmarks. A driver never mounts, hashes or reads a tar.
"""
