"""A union mounted with `dirsync` or `sync` (mount(8)): what was changed is on the disk when the call returns.

The kernel sees to data: with `sync` it asks for an fsync after each write (generic_write_sync(), linux/fs.h), if no
file is lent to it. Of the rest it tells the server nothing, nor can one fsync(2) cover it: a rename changes two
directories, and takes whiteouts and copies of directories with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Concatenate, ParamSpec, TypeVar

from unionfs.union.fs import UnionFs

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _synced(operation: Callable[Concatenate[UnionFs, _P], _T]) -> Callable[Concatenate[UnionFs, _P], _T]:
    @functools.wraps(operation)
    def synced(fs: UnionFs, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        fs.takes_long()  # said first: what was done cannot be refused any more
        done = operation(fs, *args, **kwargs)
        fs.syncfs()
        return done

    return synced


class DirSyncUnionFs(UnionFs):
    """Names: what mount(8) lists."""

    create = _synced(UnionFs.create)
    link = _synced(UnionFs.link)
    unlink = _synced(UnionFs.unlink)
    symlink = _synced(UnionFs.symlink)
    mkdir = _synced(UnionFs.mkdir)
    rmdir = _synced(UnionFs.rmdir)
    mknod = _synced(UnionFs.mknod)
    rename = _synced(UnionFs.rename)


class SyncUnionFs(DirSyncUnionFs):
    """Everything but data."""

    setattr = _synced(UnionFs.setattr)
    setxattr = _synced(UnionFs.setxattr)
    removexattr = _synced(UnionFs.removexattr)
    set_flags = _synced(UnionFs.set_flags)
    set_fsxattr = _synced(UnionFs.set_fsxattr)
    fallocate = _synced(UnionFs.fallocate)
    copy_file_range = _synced(UnionFs.copy_file_range)


def kind(flags: Collection[str], otherwise: type[UnionFs]) -> type[UnionFs]:
    """Of a union that is mounted with these flags of mount(8); `otherwise` if none of them is about that."""
    if "sync" in flags:
        return SyncUnionFs
    return DirSyncUnionFs if "dirsync" in flags else otherwise
