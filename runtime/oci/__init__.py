"""The low level of the runtime: an OCI configuration in, a process out. Knows nothing of images or networks.

    container.py     what callers use: create, exec_process, delete; Init with start, wait, kill
    spec.py          config.json -> Spec, validated once, with reader.py and resources.py
    defaults.py      docker's values to build one from
    parent.py        the side of the fork that waits      sync.py    the messages between the two, drawn
    child.py         the side that becomes the container
    rootfs.py        the new root as a list of steps      inroot.py  paths that cannot leave a root
    options.py       what mount options mean              terminal.py  the pty
    cgroups.py       limits and killing; the files are v1.py's and v2.py's, device_program.py's for v2's devices
    caps.py          capabilities                         command.py execve, and why it failed
    sealed.py        the interpreter's file, out of the container's reach

Arrows (A <- B: B may import A): {cgroups, rootfs, terminal, caps, command} <- child <- parent <- container, and any of
them imports spec and sync.
Every process that calls create or exec_process must be single-threaded (see unionfs.linux.processes.clone3).
"""
