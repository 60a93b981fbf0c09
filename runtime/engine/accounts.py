"""USER[:GROUP] of an image or option, looked up in the container's own /etc/passwd and /etc/group.

The files are opened confined to the root file system: an image's /etc may be a symbolic link to the host's.
Numbers need no entry. Nothing that is neither a number nor in the files is ever taken for root (CVE-2026-30892).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from runtime.errors import ConfigError
from unionfs.linux import consts, files

_LARGEST = (1 << 32) - 2
_TABLE = 16 << 20  # characters that are read of a table


class Account(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def lookup(user: str, rootfs: str) -> Account:
    """The account `user` means in `rootfs`; "" means root. Raises ConfigError for one that is not there."""
    name, colon, group = user.partition(":")
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        passwd = _table(root, b"etc/passwd", 7)
        groups = _table(root, b"etc/group", 4)
    finally:
        os.close(root)
    uid, gid, home, login = _user(name or "0", passwd)
    if colon:
        return Account(uid, _group(group, groups), (), home)
    named = (_number(row[2]) for row in groups if login and login in row[3].split(","))
    more = {number for number in named if number is not None} - {gid}
    return Account(uid, gid, tuple(sorted(more)), home)


def _user(name: str, passwd: list[list[str]]) -> tuple[int, int, str, str]:
    """uid, gid, home and login name."""
    number = _number(name)
    for row in passwd:
        if row[0] == name or (number is not None and row[2] == str(number)):
            uid, gid = _number(row[2]), _number(row[3])
            if uid is not None and gid is not None:
                return uid, gid, row[5] or "/", row[0]
    if number is None:
        raise ConfigError(f"unable to find user {name}: no matching entry in the image's /etc/passwd")
    return number, 0, "/root" if number == 0 else "/", ""


def _group(name: str, groups: list[list[str]]) -> int:
    number = _number(name)
    if number is not None:
        return number
    for row in groups:
        if row[0] == name and (gid := _number(row[2])) is not None:
            return gid
    raise ConfigError(f"unable to find group {name!r}: no matching entry in the image's /etc/group")


def _number(text: str) -> int | None:
    """None for what is no id: ids have 32 bits, and the last is chown(2)'s "leave it"."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _LARGEST else None


def _table(root: int, path: bytes, columns: int) -> list[list[str]]:
    """The rows of passwd(5) or group(5) with at least `columns` columns; none where there is no such file."""
    try:
        fd = _open_file(root, path)
    except OSError:
        return []
    # A line ends at a newline and at nothing else, as for getpwent(3): the text of a field may have whatever else
    # str.splitlines() takes for an end, and what follows would be an account that somebody made up.
    with open(fd, encoding="utf-8", errors="surrogateescape", newline="\n") as table:
        rows = [line.split(":") for line in table.read(_TABLE).split("\n")]
    return [row for row in rows if len(row) >= columns and row[0]]


def _open_file(root: int, path: bytes) -> int:
    """Open a regular file. What else the container has put there is not even opened: a device may act on an open."""
    found = files.openat2(root, path, os.O_PATH, resolve=consts.RESOLVE_IN_ROOT | consts.RESOLVE_NO_MAGICLINKS)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return os.open(files.fd_path(found), os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)
