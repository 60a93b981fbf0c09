"""What a directory of differences says of a name that is not in it, or of all of them: read, and written.

    "aufs"               as fuse-aufs' union has it (unionfs.union.form): `.wh.NAME`, `.wh..wh..opq`; for names of which
                         `.wh.NAME` would be too long also devices as overlayfs'
    "overlay"            overlayfs' character devices 0:0 and trusted.overlay.opaque
    "overlay-userxattr"  the same with user.overlay.opaque, in a user namespace

Directories are descriptors, O_PATH will do; reading needs /proc. OSError of the file system.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from drivers.api import Form
from unionfs.linux.files import fd_path
from unionfs.union import opaque
from unionfs.union.form import (
    OPAQUE,
    OVERLAY_OPAQUE,
    is_long,
    is_overlay_whiteout,
    is_private_attribute,
    whiteout_of,
)

_OPAQUE: dict[str, str] = dict(zip(("overlay", "overlay-userxattr"), OVERLAY_OPAQUE, strict=True))


def is_opaque(fd: int, form: Form) -> bool:
    """Whether the directory hides all that is below it."""
    if form == "aufs":
        return opaque.is_opaque(fd, b".")
    try:
        return os.getxattr(fd_path(fd), _OPAQUE[form]) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def hides(fd: int, name: bytes, form: Form) -> bool:
    """Whether the directory has a whiteout of `name`."""
    if form == "aufs" and os.access(whiteout_of(name), os.F_OK, dir_fd=fd, follow_symlinks=False):
        return True
    if form == "aufs" and not is_long(name):
        return False
    try:
        return is_overlay_whiteout(os.stat(name, dir_fd=fd, follow_symlinks=False))
    except FileNotFoundError:
        return False


def covers(fd: int, name: bytes, form: Form) -> bool:
    """Whether the directory has `name` or a whiteout of it, so that none from a lower directory shines through."""
    return os.access(name, os.F_OK, dir_fd=fd, follow_symlinks=False) or hides(fd, name, form)


def hide(fd: int, name: bytes, form: Form) -> None:
    """Make the whiteout of `name`, of which the directory has neither."""
    if form == "aufs":
        _make_file(fd, whiteout_of(name))
        if is_long(name):
            with suppress(OSError):  # for others: unionfs.union.whiteout.tell_others
                _make_device(fd, name)
    else:
        _make_device(fd, name)


def reveal(fd: int, name: bytes, form: Form) -> None:
    """Take away the whiteout of `name` that lies beside an entry of that name. In overlayfs' form there can be none."""
    if form == "aufs":
        with suppress(FileNotFoundError):
            os.unlink(whiteout_of(name), dir_fd=fd)


def make_opaque(fd: int, form: Form) -> None:
    """Have the directory hide all that is below it. It may be so already."""
    if form == "aufs":
        with suppress(FileExistsError):
            _make_file(fd, OPAQUE)
    else:
        os.setxattr(fd_path(fd), _OPAQUE[form], b"y")


def is_mark(name: bytes, form: Form) -> bool:
    """Whether an extended attribute says something of the layer and not of the file."""
    if form == "aufs":
        return is_private_attribute(name)
    return name.startswith(_OPAQUE[form].encode().removesuffix(b"opaque"))


def _make_device(fd: int, name: bytes) -> None:
    os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=fd)


def _make_file(fd: int, name: bytes) -> None:
    file = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444, dir_fd=fd)
    try:
        os.fchmod(file, 0o444)  # whatever the umask
    finally:
        os.close(file)
