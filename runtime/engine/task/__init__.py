"""The process that keeps one container: a shim per container, single-threaded, in a session of its own.

It is the container's parent and its only keeper: it holds the container's lock from before the first mount until the
last trace is gone, so a free lock means that nobody looks after the container any more (recover.py).

The root file system is a mount that is attached nowhere but in the container's own mount namespace. Nobody else gets a
copy of it, and it ends with the last of the container's processes and our descriptors, however we end. Nor has a
container, or its shim, copies of the host's mounts: what the host unmounts is not kept mounted here.
"""
