"""Storage: the drivers of an installation, and who takes how much room in them.

    drivers        the drivers that are open, one object each, and those that are away
    lost           snapshots of containers that have no record any more
    leftovers      what killed processes left, taken back
    disk           what images and containers take on disk, for `system df`
    pruned         what a prune has removed

containers/ and images/ import `drivers` and `pruned`; `lost`, `leftovers` and `disk` look at both from above.
"""
