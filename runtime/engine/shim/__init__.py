"""The process that keeps one container: a shim per container, single-threaded, in a session of its own.

It is the container's parent and its only keeper: it holds the container's lock from before the first mount until the
last trace is gone, so a free lock means that nobody looks after the container any more (recover.py).

The root file system is mounted in a mount namespace of the shim's own. No other process can then hold it busy, and no
other container carries a copy of it; the price is that a FUSE server started by a driver keeps that namespace alive
when the shim is killed, so recovery looks for processes that still see the mount point. The namespace is a slave of
the host's: what the host unmounts is not kept mounted here.
"""
