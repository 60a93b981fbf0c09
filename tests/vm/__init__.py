"""A virtual machine with a Debian kernel, for what this machine's may lack: device-mapper, zfs, cgroup v2 alone.

    python -m tests.vm [--zfs] [--timeout SECONDS] [--memory MIB] -- COMMAND…

boots the kernel under qemu (emulated: no KVM is needed), runs COMMAND as root in the repository's directory, streams
what it writes to standard output, and exits with its status: 124 when it took too long, 125 when there is no guest to
run it in (then a sentence on stderr says why), 128+n when signal n ended it.

The guest's root directory is this machine's, over 9p, with a tmpfs on top: whatever the guest writes is gone with it,
and this machine never sees it. /tmp, /var/tmp, /run and /var/lib are tmpfs themselves (an overlay cannot be the upper
layer of another), /sys/fs/cgroup is cgroup2 alone, /dev is a devtmpfs that no udev looks after, and the network is lo.
Modules are loaded on demand, as on any Debian.

The kernel, and zfs built for it, are fetched and made once, into /var/cache/fuse-aufs/vm (or $FUSE_AUFS_CACHE);
deleting that directory is how to get newer ones. `python -m tests.vm --prepare` does only that: the tests have a
network namespace of their own, from which nothing can be fetched, so scripts/test does it before them.

    packages.py   Debian packages that are not installed here, into a directory
    kernel.py     the kernel, its modules, the initramfs
    zfs.py        zfs's modules built for that kernel, and its programs
    guest.py      one run of qemu
    guests.py     those of a test run, beside it
    init.sh       what the guest does first
"""
