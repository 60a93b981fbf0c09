"""From Mount values to trees.

    tree        the tree of a list of mounts, attached nowhere
    overlayfs   the kernel's overlayfs as such a tree
    union       our own union as such a tree
    attached    a tree at a place of the file system
    at_rest     the tree of an active snapshot that is not in use, to look at

Stands on the interface and drivers.disk, and on unionfs for unions. Knows no driver and no graph.
"""
