"""Layer 0: system calls that Python's os module lacks, typed, with no policy.

    libc       libc's functions and raw system calls, by their prototypes
    consts     the kernel's constants, under its names
    files      openat2, renameat2, statx, fallocate, syncfs, reflinks, inode flags, ...
    mounts     mount, umount2, pivot_root, detached mounts, and the table of mounts
    processes  clone3, namespaces, credentials, prctl, descriptors before execve
    fusedev    the ioctls of /dev/fuse
    quotactl   project quotas

Imports nothing of ours; anything may import it. Every wrapper is named after its system call and raises OSError.
"""
