"""Layer 1b: what a union is. Branches, whiteouts, lookup, listing, copy-up, rename, links, identity.

It knows POSIX, not FUSE: nodes are numbers, names are bytes, every failure is an OSError. `fs.UnionFs` is the
whole of it for the layers above; the other modules are functions over one `stack.Stack`, read in this order:

    errors          how the union says no
    form            what "deleted" and "opaque" look like on disk; the only module that says so, and it imports nothing
    opaque          whether a directory is
    times           a directory's times, kept over changes that the union does not show
    own_mount       the mount that a branch is read and written by: no devices, access noted as the union's says
    removal         trees in the work area, deleted
    mark            the sign by which a union's mount is known
    branch          one directory of the stack: descriptor, permission, work area
    numbers         inode numbers on one file system and on several
    identity        inode numbers that survive copy-up and remount
    pseudolink      hard links that stay one file after copy-up
    nodes           the table of files the kernel knows
    directories     descriptors and name sets of branch directories, cached
    survey          which names in branches lead to a number, as a walk found it
    forgotten       ... and what it cannot know: where files were that left the table since
    whiteout        whiteouts and opaque marks, made and removed
    waiting         what a transport is told of work that takes long, and where it may refuse it
    spare           descriptors for operations that would find none
    resolve         the merge of one name over the branches
    adopt           from a name to the node of its file, and how long that stays
    stack           the state of one union: both, and what changes about them
    cookies         where a listing goes on, in 31 bits
    by_number       files by numbers that the table does not know: file handles
    merge           the merge of all names in a directory
    opening         opening what a node is, and nothing that was put in its place
    place           where a node's bytes are now
    protection      what chattr(1) forbids of lower files, and of their copies
    order           what has to be on the disk before what follows, where the file system does not see to it (btrfs)
    outlived        whiteouts that go later for it
    copydata        the bytes of one file into another
    copyattributes  ... and all else that a copy has of it
    copyup          making a node's bytes live in the writable branch
    privileges      set-ID bits: who takes them, who may keep them
    create, remove, rename, attributes, inode_flags, handles, listing    the operations
    extents         ranges of open files: allocation, holes, copies
    operation       the lock for one of them, and what follows at its end
    calls/          what can be asked of a union, by what it is about
    fs              UnionFs: all of it, and what is asked of the whole
    synchronous     UnionFs that syncs after each change (mount options sync, dirsync)
    again           which failed operations are tried again

Locks, outermost first:

    1. Stack.lock  guards everything reachable from a Stack except the bytes of open files. `UnionFs` takes it; the
                   functions of the other modules are called with it held. It is not reentrant on purpose. Five let go
                   of it, and what was looked up before is looked up again after: `copyup` while it copies and syncs
                   data or waits for another's copy-up (so every caller of `copy_up` and `complete`), `listing` while
                   it reads a large directory, `remove.rmdir` and `outlived` while they delete what nobody sees,
                   `by_number` while it walks the branches.
    2. none        reads, writes and fsyncs of open files, and `extents`, take no lock at all: a descriptor in a handle
                   stays open until release, and release comes after the last request on it (fs/fuse/file.c).

Order on disk: every change of several steps is ordered so that each prefix is the old tree or the new one. It rests
on one rule of lookup, that a whiteout hides what is below its branch and not the entry beside it: a whiteout made
first is not seen until the entry goes, and an entry made first is seen before its whiteout is dropped. After a power
cut it also takes a file system that keeps the order; `order` makes up for one that does not. Its syncs hold the lock:
what they come before must not be overtaken.
"""
