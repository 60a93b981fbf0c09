"""The low level of the runtime: a bundle in, a process out. Knows nothing of images or networks.

    container.py     what callers use: create, start, join, exec_process, kill, delete, on a directory each
    state.py         what that directory says of its container, and the socket over which it is started
    process.py       Init, a process of a container as its parent has it: wait, kill
    spec.py          config.json -> Spec, validated once, with reader.py and resources.py
    defaults.py      docker's values to build one from
    parent.py        the side of the fork that waits      sync.py    the messages between the two, drawn
    child.py         the side that becomes the container
    rootfs.py        the new root as a list of steps      newroot.py  the namespace that has it
    options.py       what mount options mean              inroot.py  paths that cannot leave a root
    terminal.py      the pty                              command.py execve, and why it failed
    cgroups.py       limits and killing; the files are v1.py's and v2.py's, device_program.py's for v2's devices
    caps.py          capabilities                         seccomp.py  system calls that are refused
    sealed.py        the interpreter's file, out of the container's reach

Arrows (A <- B: B may import A): {cgroups, rootfs, terminal, caps, command} <- child <- parent <- process <- container;
{cgroups, sync} <- state <- container; and any of them imports spec and sync.
Every process that calls create, join or exec_process must be single-threaded (see unionfs.linux.processes.clone3).
"""
