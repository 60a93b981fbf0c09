"""USER[:GROUP] of an image or option, looked up in the container's own /etc/passwd and /etc/group.

The files are opened confined to the root file system: an image's /etc may be a symbolic link to the host's. Their rows
are those that programs in the container find, glibc's nss/nss_files/files-parse.c, but for ids that are negative or too
large, of which that makes others. Numbers need no entry. Nothing that is neither a number nor in the files is ever
taken for root (CVE-2026-30892).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from runtime.errors import ConfigError
from unionfs.linux import consts, files

_LARGEST = (1 << 32) - 2  # the last is chown(2)'s "leave it"
_TABLE = 1 << 20  # bytes of a table
_SPACE = " \t\v\f\r"  # isspace(3)'s; a newline is in no line
_ID = re.compile(rf"[{_SPACE}]*\+?0*([0-9]{{1,10}})")  # as strtoul(3) takes it


class Account(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


class User(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class Group(NamedTuple):
    name: str
    gid: int
    members: tuple[str, ...]


def lookup(user: str, rootfs: str) -> Account:
    """The account `user` means in `rootfs`; "" means root. Raises ConfigError for one that is not there, and for a
    table that is too large to be looked at: it is the container's, which may change it at any time."""
    name, colon, group = user.partition(":")
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = _user(name or "0", root)
        if colon:
            return Account(found.uid, _gid(group, root), (), found.home)
        more = {row.gid for row in groups(_read(root, "etc/group")) if found.name in row.members} - {found.gid}
    finally:
        os.close(root)
    return Account(found.uid, found.gid, tuple(sorted(more)), found.home)


def _user(name: str, root: int) -> User:
    number = _number(name)
    for row in users(_read(root, "etc/passwd")):
        if name == row.name or number == row.uid:
            return row._replace(home=row.home or "/")
    if number is None:
        raise ConfigError(f"unable to find user {name}: no matching entry in the image's /etc/passwd")
    return User("", number, 0, "/root" if number == 0 else "/")


def _gid(name: str, root: int) -> int:
    number = _number(name)
    if number is not None:
        return number
    for row in groups(_read(root, "etc/group")):
        if name == row.name:
            return row.gid
    raise ConfigError(f"unable to find group {name!r}: no matching entry in the image's /etc/group")


def _number(text: str) -> int | None:
    """None for what is not an id of 32 bits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _LARGEST else None


def users(text: str) -> Iterator[User]:
    """The rows of a passwd(5) that can be found in it; what follows the ids may be missing."""
    for name, *fields in _rows(text, most=7):
        if len(fields) >= 3 and (uid := _id(fields[1])) is not None and (gid := _id(fields[2])) is not None:
            yield User(name, uid, gid, fields[4] if len(fields) > 4 else "")


def groups(text: str) -> Iterator[Group]:
    """The rows of a group(5) that can be found in it; the list of members may be missing."""
    for name, *fields in _rows(text, most=4):
        if name and len(fields) >= 2 and (gid := _id(fields[1])) is not None:
            members = fields[2].split(",") if len(fields) > 2 else ()
            yield Group(name, gid, tuple(filter(None, (member.lstrip(_SPACE) for member in members))))


def _rows(text: str, most: int) -> Iterator[list[str]]:
    """The fields of each line, `most` at most, except for comments and for what NIS was to replace, `+` and `-`.

    A line ends at a newline and at nothing else: the text of a field may have whatever else str.splitlines() takes for
    an end, and what follows would be an account that somebody made up.
    """
    end = -1
    while end < len(text):
        begin, end = end + 1, text.find("\n", end + 1)
        if end < 0:
            end = len(text)
        fields = text[begin:end].partition("\0")[0].lstrip(_SPACE).split(":", most - 1)
        if not fields[0].startswith(("#", "+", "-")):
            yield fields


def _id(field: str) -> int | None:
    match = _ID.fullmatch(field)
    return _number(match[1]) if match else None


def _read(root: int, path: str) -> str:
    """The text of a table; "" where there is no such file. ConfigError where it is too large: a part of it could end
    in the middle of an id."""
    try:
        fd = _open_file(root, os.fsencode(path))
    except OSError:
        return ""
    with open(fd, "rb") as table:
        data = table.read(_TABLE + 1)
    if len(data) > _TABLE:
        raise ConfigError(f"the image's /{path} is larger than {_TABLE >> 20} MiB: no account is looked up in it")
    return data.decode("utf-8", "surrogateescape")


def _open_file(root: int, path: bytes) -> int:
    """Open a regular file. What else the container has put there is not even opened: a device may act on an open."""
    found = files.openat2(root, path, os.O_PATH, resolve=consts.RESOLVE_IN_ROOT | consts.RESOLVE_NO_MAGICLINKS)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return os.open(files.fd_path(found), os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)
