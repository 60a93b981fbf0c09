"""The low level of the runtime: an OCI configuration in, a process out. Knows nothing of images or networks.

    container.py     what callers use: create, exec_process, delete; Init with start, wait, kill
    spec.py          config.json -> Spec, validated once; defaults.py has docker's values to build one from
    parent.py        the side of the fork that waits      sync.py    the messages between the two, drawn
    child.py         the side that becomes the container
    rootfs.py        the new root as a list of steps      inroot.py  paths that cannot leave a root
    cgroups.py       limits, freezing, killing            caps.py    capabilities
    sealed.py        the interpreter's file, out of the container's reach

Arrows: container <- parent <- {child, cgroups} ; child <- {rootfs, caps, terminal, command} ; all <- spec, sync.
Every process that calls create or exec_process must be single-threaded (see unionfs.linux.processes.clone3).
"""
