"""What a storage driver costs, measured against kernel overlayfs on the same machine in the same minutes.

One question a file: copyup.py (the first change to a file of a lower layer), lookup.py (finding a name in a stack of
layers). subjects.py turns layers into a mounted tree for every driver and for the peers that are installed; timing.py
takes the time; facts.py says on what machine; report.py makes the table and the JSON. `python -m benchmarks` runs them.

The questions drive the drivers' public interface and real mounts. Nothing imports this package.
"""
