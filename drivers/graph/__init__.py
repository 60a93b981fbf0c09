"""The layer graph of one driver, and where it is kept.

    transaction   the rows of a store, and what the graph allows: one transaction over them
    schema        the tables, and how those of an older version are turned into them
    store         the sqlite file of the tables; its transactions, and what it says when it cannot be used
    snapshotter   GraphSnapshotter: the part of a Snapshotter that is the graph, which all drivers share
    layout        the directories of snapshots: new-X -> id -> rm-id
    directories   DirectorySnapshotter: a Snapshotter whose layers are directories

Stands on the interface and drivers.disk. Knows no driver, and mounts nothing.
"""
