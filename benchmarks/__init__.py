"""What a storage driver costs, measured against kernel overlayfs on the same machine in the same minutes.

One question per file, asked of the drivers and their stacks of layers (subjects.py):
    copyup, lookup
and of unions of two directories, where no driver is in between (unions.py):
    throughput, metadata, walk, workloads, pagecache, memory

peers.py has the other union file systems; timing.py takes the time; facts.py describes the machine; report.py makes
tables and JSON of the samples; targets.py says what the figures should be; record.py keeps them in results/.
`python -m benchmarks` runs the questions.

They drive the drivers' public interface and real mounts. Nothing imports this package.
"""
