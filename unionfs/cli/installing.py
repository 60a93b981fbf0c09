"""`unionfs install-helpers`: the links by which mount(8) and umount(8) find us. They look in /sbin and nowhere else.

What is linked runs as root at the next boot. So it must be root's alone: the command, its interpreter and its modules,
with every directory that leads to them.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import sysconfig
from collections.abc import Iterator

# Type fuse.unionfs is what the table of mounts shows, so what umount(8) asks for; `-t unionfs` is for those who mount.
_NEEDED = ("mount.fuse.unionfs", "umount.fuse.unionfs")
_WISHED = ("mount.unionfs",)

_MODULES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def install(directory: str) -> list[str]:
    """What to tell of what was left as it is. Raises OSError(errno, what is wrong; what to do, path)."""
    program = os.path.join(sysconfig.get_path("scripts"), "unionfs")
    for path in (program, sys.executable, _MODULES):
        _check_roots(path)
    foreign = [name for name in (*_NEEDED, *_WISHED) if not _is_ours(os.path.join(directory, name))]
    for name in _NEEDED:
        if name in foreign:
            raise OSError(errno.EEXIST, "is another program's; take it away first", os.path.join(directory, name))
    for name in (*_NEEDED, *_WISHED):
        if name not in foreign:
            _link(program, os.path.join(directory, name))
    return [f"{os.path.join(directory, name)} is another program's, and left as it is" for name in foreign]


def remove(directory: str) -> None:
    for name in (*_NEEDED, *_WISHED):
        path = os.path.join(directory, name)
        if os.path.lexists(path) and _is_ours(path):
            os.unlink(path)


def _link(program: str, path: str) -> None:
    beside = f"{path}.new"
    if os.path.islink(beside):
        os.unlink(beside)
    os.symlink(program, beside)
    os.rename(beside, path)


def _is_ours(path: str) -> bool:
    """A link to some installation of ours, or nothing."""
    try:
        return os.path.basename(os.readlink(path)) == "unionfs"
    except FileNotFoundError:
        return True
    except OSError:  # EINVAL: no link
        return False


def _check_roots(path: str) -> None:
    for step in _on_the_way(path):
        try:
            entry = os.lstat(step)
        except FileNotFoundError:
            raise OSError(errno.ENOENT, "is not there: install the package with pip first", step) from None
        open_to_all = entry.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not entry.st_mode & stat.S_ISVTX
        if entry.st_uid != 0 or (open_to_all and not stat.S_ISLNK(entry.st_mode)):
            text = "others than root may change it, and mount(8) would run it as root: install for root alone"
            raise OSError(errno.EPERM, text, step)


def _on_the_way(path: str) -> Iterator[str]:
    """Everything that is looked at to get to the absolute `path`: directories, and links themselves."""
    here, names = "/", path.split("/")[::-1]
    yield here
    while names:
        name = names.pop()
        if name in ("", "."):
            continue
        if name == "..":
            here = os.path.dirname(here)
            continue
        step = os.path.join(here, name)
        yield step
        if not os.path.islink(step):
            here = step
            continue
        target = os.readlink(step)
        names += target.split("/")[::-1]
        if target.startswith("/"):
            here = "/"
