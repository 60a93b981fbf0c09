"""Set-ID bits of a regular file: who changes it takes them off, or may keep them (setattr_should_drop_suidgid() and
chown_common(), fs/attr.c and fs/open.c).

                        set-user-ID   set-group-ID, group may execute   set-group-ID, group may not
    chown, by anybody   goes          goes                              goes, unless a member or over the file
    write, truncate …
      with CAP_FSETID   stays         stays                             stays
      without           goes          goes                              goes, unless a member or over the file

"With CAP_FSETID" is capable(); "over the file" has it in any user namespace that the file's owner and group are mapped
in (in_group_or_capable(), fs/inode.c). What chmod(2) may set the kernel has decided before it asks.

The branch's file system would go by the server, who is root or the only user there is. So what it cannot know is asked
of /proc, and only where a file has the bits: the kernel sends neither supplementary groups nor capabilities.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from unionfs.linux import consts, processes
from unionfs.union.place import Place

_SET_ID = stat.S_ISUID | stat.S_ISGID


class Caller(NamedTuple):
    """Who asks: user, group, and the thread's number as the server sees it, 0 if it is in another pid namespace."""

    uid: int
    gid: int
    tid: int

    def is_member(self, gid: int) -> bool:
        return gid == self.gid or gid in processes.groups(self.tid)

    def has(self, capability: int) -> bool:
        """Whether the kernel's capable() would say so. Of a caller who cannot be seen, if he is root."""
        if not self.tid:
            return self.uid == 0
        return processes.is_capable(self.tid, capability, self.uid)

    def keeps_set_group_id(self, entry: os.stat_result) -> bool:
        """Of a file that the group may not execute."""
        if self.is_member(entry.st_gid):
            return True
        if not self.tid:
            return self.uid == 0
        return processes.is_capable_over(self.tid, consts.CAP_FSETID, self.uid, (entry.st_uid, entry.st_gid))


# The server itself.
ROOT = Caller(0, 0, 0)


def has_any(entry: os.stat_result) -> bool:
    """Whether there is anything to take."""
    return bool(entry.st_mode & _SET_ID) and stat.S_ISREG(entry.st_mode)


def left(entry: os.stat_result, caller: Caller) -> int:
    """The permission bits that a chown leaves, or another change by a caller without CAP_FSETID."""
    mode = stat.S_IMODE(entry.st_mode)
    kept = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP or not caller.keeps_set_group_id(entry):
        kept &= ~stat.S_ISGID
    return kept


def take(here: Place, caller: Caller, *, unless_capable: bool = False) -> bool:
    """Take the bits off as `left` says, or with `unless_capable` as a write does; False if that changed nothing."""
    entry = here.stat()
    if not has_any(entry) or (unless_capable and caller.has(consts.CAP_FSETID)):
        return False
    kept = left(entry, caller)
    if kept == stat.S_IMODE(entry.st_mode):
        return False
    here.chmod(kept)
    return True


def completed(entry: os.stat_result, mode: int, caller: Caller) -> int:
    """The `mode` to be set where it may be the kernel that takes set-user-ID for a write or a chown, not a chmod(2): it
    leaves a set-group-ID that the group may not execute (fuse_setattr(), fs/fuse/dir.c)."""
    has = stat.S_IMODE(entry.st_mode)
    only_group = has & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID
    taken = stat.S_ISREG(entry.st_mode) and has & stat.S_ISUID and only_group and mode == has & ~stat.S_ISUID
    if taken and caller.tid and not caller.keeps_set_group_id(entry):
        return mode & ~stat.S_ISGID
    return mode


def may_write(entry: os.stat_result, caller: Caller) -> bool:
    """By the mode bits alone."""
    if caller.uid == entry.st_uid:
        return bool(entry.st_mode & stat.S_IWUSR)
    return bool(entry.st_mode & (stat.S_IWGRP if caller.is_member(entry.st_gid) else stat.S_IWOTH))
