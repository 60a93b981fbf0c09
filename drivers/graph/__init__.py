"""The layer graph of one driver, and where it is kept.

    transaction   the rows of a store, and what the graph allows: one transaction over them
    store         the sqlite file that has the rows; transactions, versions, a full disk
    snapshotter   GraphSnapshotter: a Snapshotter as far as it is the graph, which is what all drivers share
    layout        the directories of snapshots: new-X -> id -> rm-id
    directories   DirectorySnapshotter: a Snapshotter whose layers are directories

Stands on the interface and drivers.disk. Knows no driver, and mounts nothing.
"""
