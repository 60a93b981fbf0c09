"""Layer 1b: what a union is. Branches, whiteouts, lookup, listing, copy-up, rename, links, identity.

It knows POSIX, not FUSE: nodes are numbers, names are bytes, every failure is an OSError. `fs.UnionFs` is the
whole of it for the layers above; the other modules are functions over one `stack.Stack`, read in this order:

    form        what "deleted" and "opaque" look like on disk; the only module that says so, and it imports nothing
    opaque      whether a directory is
    branch      one directory of the stack: descriptor, permission, work area
    numbers     inode numbers on one file system and on several
    identity    inode numbers that survive copy-up and remount
    nodes       the table of files the kernel knows
    directories descriptors and name sets of branch directories, cached
    whiteout    whiteouts and opaque marks, made and removed
    stack       the state of one union, and the merge of one name over the branches
    cookies     where a listing goes on, in 31 bits
    merge       the merge of all names in a directory
    opening     opening what a node is, and nothing that was put in its place
    protection  what chattr(1) forbids of lower files, and of their copies
    place       where a node's bytes are now
    copydata    the bytes of one file into another
    copyup      making a node's bytes live in the writable branch
    order       what has to be on the disk before what follows, where the file system does not see to it (btrfs)
    outlived    whiteouts that go later for it
    privileges  set-ID bits: who takes them, who may keep them
    create, remove, rename, attributes, inode_flags, handles, listing    the operations
    operation   the lock for one of them, and what follows at its end
    extents     ranges of open files: allocation, holes, copies
    again       which failed operations are tried again
    spare       descriptors for them
    fs          UnionFs: takes the lock and delegates

Locks, outermost first:

    1. Stack.lock  guards everything reachable from a Stack except the bytes of open files. `UnionFs` takes it; the
                   functions of the other modules are called with it held. It is not reentrant on purpose:
                   `copyup` lets go of it (data copy, fsync), so a caller of `copyup.copy_up` or `copyup.complete`
                   looks its names up again afterwards; `listing` does while it reads a large directory.
    2. none        reads, writes and fsyncs of open files, and `extents`, take no lock at all: a descriptor in a handle
                   stays open until release, and release comes after the last request on it (fs/fuse/file.c).

Order on disk: every change of several steps is ordered so that each prefix is the old tree or the new one. It rests
on one rule of lookup, that a whiteout hides what is below its branch and not the entry beside it: a whiteout made
first is not seen until the entry goes, and an entry made first is seen before its whiteout is dropped. After a power
cut it also takes a file system that keeps the order; `order` makes up for one that does not. Its syncs hold the lock:
what they come before must not be overtaken.
"""
