"""The attributes of one file onto its copy: owner, mode, times, extended attributes, and which file it is a copy of."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from unionfs.linux import files
from unionfs.union import form
from unionfs.union.branch import Branch
from unionfs.union.place import Place

_SET_ID = stat.S_ISUID | stat.S_ISGID


def by_descriptor(
    branch: Branch, source: int, entry: os.stat_result, copy: int, made: os.stat_result, kept: bytes, modified: int
) -> None:
    """Owner, extended attributes (ACLs and capabilities are among them), mode and times, and what is `kept` of its
    original, from the open file `source` with the status `entry` to `copy`, which was `made` with its permission bits.

    The order matters: writing clears capabilities, so the data comes before; chown(2) clears them and set-user-ID,
    so both come after it; and who is not root sets attributes of a file that he may write to, so the mode comes last.
    """
    owned = (made.st_uid, made.st_gid) == (entry.st_uid, entry.st_gid)
    if not owned:
        os.chown(copy, entry.st_uid, entry.st_gid)
    os.setxattr(copy, branch.attribute("origin"), kept)
    for name, value in _to_copy(source):
        with _unless_unsupported(branch, name):
            os.setxattr(copy, name, value)
    mode = stat.S_IMODE(entry.st_mode)
    if not owned or mode != stat.S_IMODE(made.st_mode) or mode & _SET_ID:
        os.chmod(copy, mode)
    os.utime(copy, ns=(entry.st_atime_ns, modified))


def by_name(branch: Branch, source: int, copy: Place, kept: bytes) -> None:
    """The same for other kinds of files, from an O_PATH descriptor to an entry of the work area."""
    entry = os.fstat(source)
    copy.chown(entry.st_uid, entry.st_gid)
    try:
        copy.setxattr(branch.attribute("origin"), kept)
    except OSError as error:
        # user.* is not allowed on links and devices; they get a new number after a remount.
        if error.errno != errno.EPERM:
            raise
    for name, value in _to_copy(files.fd_path(source)):
        with _unless_unsupported(branch, name):
            copy.setxattr(name, value)
    if not stat.S_ISLNK(entry.st_mode):
        copy.chmod(stat.S_IMODE(entry.st_mode))
    copy.utime(entry.st_atime_ns, entry.st_mtime_ns)


def _to_copy(source: int | bytes) -> list[tuple[str, bytes]]:
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []  # a file system that has none at all
        raise
    # ACLs last: they take the owner's permissions too.
    names.sort(key=lambda name: name.startswith("system."))
    return [
        (name, os.getxattr(source, name)) for name in names if not form.is_private_attribute(os.fsencode(name))
    ]


@contextlib.contextmanager
def _unless_unsupported(branch: Branch, name: str) -> Iterator[None]:
    """The branch's file system may have no such namespace (an ACL on one without them, say). And a capability is
    nothing that a user could give, nor keep: his own write takes it (cap_inode_setxattr(), security/commoncap.c)."""
    try:
        yield
    except OSError as error:
        if branch.confined and error.errno == errno.EPERM and name.startswith("security."):
            return
        if error.errno not in (errno.EOPNOTSUPP, errno.ENODATA):
            raise
