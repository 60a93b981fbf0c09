"""A union file system in user space, in the on-disk layout of AUFS, served through FUSE.

    linux/       layer 0   system calls that Python's os lacks
    fuse/        layer 1a  the FUSE wire protocol, bytes in and bytes out
    union/       layer 1b  what a union is: UnionFs (union.fs) over Branches (union.branch); POSIX, no FUSE
    serve/       layer 2   requests to UnionFs calls, and OSError to errno
    transport/   layer 3   mounting, the session that reads requests, unmounting
    options      the three dialects of branches and options, as one MountPlan
    cli/         unionfs mount | umount | info | install-helpers, and what mount(8) calls

Each imports only what is above it (options imports nothing). To mount a union from another program, run
`python -m unionfs mount`: the server must be a process of its own.
"""
