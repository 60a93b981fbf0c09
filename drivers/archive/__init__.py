"""Tar archives that somebody else made: read, checked, and extracted below one directory.

    errors <- limits, headers <- reader <- policy <- walk <- validate, extract
    decompress gives the plain stream that reader takes

Nothing here trusts an archive. `headers` and `reader` turn bytes into entries or an ArchiveError; `policy` says what an
entry may ask for; `walk` resolves names inside the root; `validate` runs all that on a tree in memory, `extract` on the
disk, through directory descriptors. The tarfile module is not used.

What is decided, and why:
- `..` in a name, absolute names: refused. No tool writes them unless asked, so they are a mistake or an attack.
- A symbolic link is stored as it is, whatever it points to: rootfs archives are full of absolute ones. An entry *below*
  a symbolic link is accepted when the link is relative and stays inside the root (`lib -> usr/lib`), and refused
  otherwise; docker would take such a link as if the root were `/`. No archive made from a directory has such entries.
- A hard link's target is a name like any other and is never followed through a symbolic link at its end.
- Devices: the eight that every container has anyway (null, zero, full, random, urandom, tty, console, ptmx) are made,
  since debootstrap and buildroot archives carry them. Every other one is refused, and 0:0 most of all: it is
  overlayfs's whiteout. docker makes them all.
- Owners are the numbers; names of users are not looked up (CVE-2019-14271).
- Extended attributes: user.* and security.capability are kept; the marks of overlay file systems are refused; the rest,
  which is the policy of the machine the archive was made on (SELinux labels, IMA, trusted.*), is dropped, and so are
  POSIX ACLs, which GNU tar writes in words.
- Sparse members are refused (the OCI layer specification advises against them, and they are three formats).
- `.wh.NAME` and `.wh..wh..opq` are OCI whiteouts for what lay below the root before; other `.wh.` names are refused.

Threading: one archive is read by one thread; two archives have nothing in common.
"""
