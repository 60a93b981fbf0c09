"""Tar archives: reading, checking and extracting into one tree what somebody else made; and writing our own.

    errors <- limits, headers <- reader <- policy <- tree <- walk <- validate
    walk <- parents <- layered <- extract, target
    acl <- reader, policy; pseudolinks <- validate, extract
    decompress gives the plain stream that reader takes
    writer is the way back: entries to bytes; what goes into a layer is drivers.diff's

Nothing here trusts an archive. `headers` and `reader` turn bytes into entries or an ArchiveError; `policy` says what an
entry may ask for; `tree` has the names that have come; `walk` resolves names inside the root; `validate` runs all that
on the tree alone, `extract` on the disk, through directory descriptors; `layered` makes that a directory of
differences, on top of what `parents` shows, and `target` says what a snapshot's archive is extracted into. The tarfile
module is not used.

What was decided, and why:
- Names are resolved as if the root were `/`, as containerd and docker do (moby pkg/archive, containerd pkg/archive): an
  absolute name begins there, `..` in one is Go's path.Clean. But a name that leads above the root is refused, as docker
  refuses it: it is a mistake or an attack.
- A symbolic link is stored as it is, whatever it points to: rootfs archives are full of absolute ones. An entry *below*
  a symbolic link goes where the link leads inside the root (`lib -> usr/lib`, `var/run -> /run`), a place that may not
  exist yet; 40 links at most, as in the kernel.
- A hard link's target is a name like any other and is never followed through a symbolic link at its end.
- Devices are made, as docker makes them: a node is a name for a number, and opens nothing by being there. Layers lie in
  directories that only root can enter, and a container's device cgroup decides what it may open. But character device
  0:0 is overlayfs's whiteout, and what it would be to an overlay it is here on every driver: a whiteout.
- Owners are the numbers; names of users are not looked up (CVE-2019-14271).
- Extended attributes: user.*, security.capability and POSIX ACLs are kept (raw, as docker writes them, or in words when
  those give numbers) on what can have them; the marks of union file systems are dropped, and so is the rest, which is
  the policy of the machine the archive was made on (SELinux labels, IMA, trusted.*).
- Pages of zeros become holes: archives of layers are written without sparse members.
- Sparse members are read in GNU tar's forms, though the OCI layer specification advises against them: archives
  of root file systems have them. Their holes count as bytes of the archive.
- `.wh.NAME` and `.wh..wh..opq` are OCI whiteouts for what lay below the root before, whatever kind of entry they are;
  what else AUFS keeps under such names is left out, but its pseudo-links become the files that they stand for. No path
  may lead through such a name.

Threading: one archive is read by one thread; two archives have nothing in common.
"""
