"""Tar archives: those that somebody else made read, checked, and extracted below one directory; and ours written.

    errors <- limits, headers <- reader <- policy <- tree <- walk <- validate, extract
    acl <- reader, policy
    decompress gives the plain stream that reader takes
    writer is the way back: entries to bytes; what goes into a layer is drivers.diff's

Nothing here trusts an archive. `headers` and `reader` turn bytes into entries or an ArchiveError; `policy` says what an
entry may ask for; `tree` has the names that have come; `walk` resolves names inside the root; `validate` runs all that
on the tree alone, `extract` on the disk, through directory descriptors. The tarfile module is not used.

What is decided, and why:
- `..` in a name, absolute names: refused. No tool writes them unless asked, so they are a mistake or an attack.
- A symbolic link is stored as it is, whatever it points to: rootfs archives are full of absolute ones. An entry *below*
  a symbolic link is accepted when the link is relative and stays inside the root (`lib -> usr/lib`), and refused
  otherwise; docker would take such a link as if the root were `/`. No archive made from a directory has such entries.
- A hard link's target is a name like any other and is never followed through a symbolic link at its end.
- Devices are made, as docker makes them: a node is a name for a number, and opens nothing by being there. Layers lie in
  directories that only root can enter, and a container's device cgroup decides what it may open. But character device
  0:0 is refused: it is overlayfs's whiteout.
- Owners are the numbers; names of users are not looked up (CVE-2019-14271).
- Extended attributes: user.*, security.capability and POSIX ACLs are kept (raw, as docker writes them, or in words when
  these say numbers); the marks of overlay file systems are refused; the rest, which is the policy of the machine the
  archive was made on (SELinux labels, IMA, trusted.*), is dropped.
- Pages of zeros become holes: archives of layers are written without sparse members.
- Sparse members are read in GNU tar's forms but one, though the OCI layer specification advises against them: archives
  of root file systems have them. Their holes count as bytes of the archive.
- `.wh.NAME` and `.wh..wh..opq` are OCI whiteouts for what lay below the root before; other `.wh.` names are refused.

Threading: one archive is read by one thread; two archives have nothing in common.
"""
