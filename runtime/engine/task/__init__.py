"""The process that keeps one container: a task per container, single-threaded, in a session of its own.

    main.py         from orders to end                   life.py     the container from its mounts to its last trace
    loop.py         clients, processes, one poll         process.py  one process, its streams, and who has them
    joining.py      a process on its way in              connection.py  one client

Arrows (A <- B: B may import A): connection <- {process, joining} <- loop <- main; life <- main.

It is the parent of the container's first process and of all that `exec` adds, and their only keeper: it holds the
container's lock from before the first mount until the last trace is gone, so a free lock means that nobody looks after
the container any more (containers/recovery.py). No client is waited for, but for the pace of a process that it had
started.

Its interpreter's file is out of the container's reach (oci/sealed.py): what becomes a container's command is a fork of
it until then.

The root file system is a mount that is attached nowhere but in the container's own mount namespace. Nobody else gets a
copy of it, and it ends with the last of the container's processes and our descriptors, however we end. Nor has a
container, or its task, copies of the host's mounts: what the host unmounts is not kept mounted here.
"""
