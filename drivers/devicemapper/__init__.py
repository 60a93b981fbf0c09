"""The driver `devicemapper`: a thin device with a file system per layer, in one thin pool.

    committed A ── thin 2 ◀─ create_snap ── thin 5 ── active B          Mount("ext4", "/dev/dm-7", …)
         ▲
    create_snap
         │
       base ──── thin 1: an empty file system, which every layer without a parent begins as

Modules, from the kernel up; each imports only those above it:

    ioctl       the dm ioctls
    status      what the kernel says of pools and thin devices, parsed
    nodes       /dev/dm-N where no devtmpfs makes it
    removal     taking away a dm device that somebody may still hold open
    settings    --storage-opt dm.…
    records     the driver's tables, beside the layer graph in the same sqlite file
    direct      reading and writing block devices past the page cache
    superblock  what ext4 and XFS say of themselves on the device, unmounted
    filesystem  making, settling and growing them
    thinmeta    what a pool says of itself on its metadata device, while it is down
    label       our name at the end of a disk
    blank       whether a block device that we are given is free
    backing     what a pool lies on: loop files, given block devices, a given pool
    proof       whether that is what it lay on last time
    pool        the thin pool, whoever has made it; and what is wrong with it, in a sentence
    own_pool    the one on disks of the root's own: making, activating, checking and growing it
    given_pool  the one that an administrator has made
    thins       thin devices: messages to the pool, activating and deactivating
    journal     a change as intent row, dm message, transaction id, row; and how it is taken back
    upkeep      the pool's coming up and going down, and its base device
    driver      the Snapshotter
    probing     whether all that works here

What is true where
==================

The graph and what every thin number is for are in the store; whether a device is active, the kernel alone says, so
there is no state of that to get out of step. A view has no device of its own: its parent's is active read-only. The
store and the pool count the same transactions, so a store that was restored from an old copy is found out instead of
believed.

A pool that was made is never made again, and the kernel is given only what is proven to be that pool's: its superblock
and the end of its data device bear the store's identity.

One lock (`lock` in the root, drivers.disk.locks) is held for everything that changes the pool or its devices, and is
taken before any transaction of the store. Whoever holds it and finds a change unfinished knows that the owner of that
change has died.
"""

from drivers.devicemapper.driver import Driver
from drivers.devicemapper.probing import probe
from drivers.devicemapper.settings import OPTIONS

__all__ = ["OPTIONS", "Driver", "probe"]
