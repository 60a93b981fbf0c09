"""Whether a path is ours to use: nobody else can put something in its place, and nobody else has.

The layers of a root are root's files, set-id ones among them, and what removes one deletes a tree. So a root lies where
only root, or whoever runs this by sudo(8), could exchange it; its directories and files belong to whoever uses it, and
are not symbolic links, which can lead wherever their owner likes.
"""

from __future__ import annotations

import os
import stat

from drivers.disk import durable
from drivers.disk.trees import DIRECTORY
from drivers.errors import Unavailable
from unionfs.linux.mounts import mountinfo
from unionfs.linux.processes import in_user_namespace

FSTAB = "/etc/fstab"
_LINKS = 40  # as many as the kernel follows (path_resolution(7))


def own_directory(path: str) -> str:
    """The directory without symbolic links in its path, made (0700) if missing, and closed to others (CVE-2021-41091).

    Raises Unavailable if it is somebody else's, or can be replaced by somebody else.
    """
    check_way(path)
    real = os.path.realpath(path)
    durable.make_directories(real, 0o755)  # nobody else may write to them, whatever the umask
    fd = os.open(real, DIRECTORY)
    try:
        _check_owner(real, os.fstat(fd))
        os.fchmod(fd, 0o700)  # the directory may have been there
    finally:
        os.close(fd)
    return real


def check_file(path: str) -> None:
    """Raise Unavailable unless it is a regular file that is ours, or missing. Closes it to others.

    It is not opened: closing any descriptor of a file releases every lock that sqlite has on it in this process
    (fcntl(2)). And it is in a directory of ours, in which nobody can exchange it between this and its use.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise Unavailable(f"{path} is not a regular file: put back the one that belongs here")
    _check_owner(path, status)
    if stat.S_IMODE(status.st_mode) & 0o077:
        os.chmod(path, 0o600)


def check_way(path: str) -> None:
    """Raise Unavailable if somebody else could put another directory, or a symbolic link, in the way to `path`.

    Whoever owns a directory, or may write to it, can rename what is in it; but not what others own where it is sticky.
    """
    pending = os.path.abspath(path).split("/")[:0:-1]
    walked = "/"
    links = 0
    while pending:
        _check_closed(walked)
        name = pending.pop()
        if name in ("", ".", ".."):
            walked = os.path.dirname(walked) if name == ".." else walked
            continue
        step = os.path.join(walked, name)
        try:
            status = os.lstat(step)
        except FileNotFoundError:
            return  # the rest is made by us
        if not stat.S_ISLNK(status.st_mode):
            walked = step
            continue
        if not _is_trusted(status.st_uid):
            raise Unavailable(f"{step} is a symbolic link of {_user(status.st_uid)}, who can change it at any time")
        links += 1
        if links > _LINKS:
            return  # the kernel will refuse it
        target = os.readlink(step)
        pending += target.split("/")[::-1]
        walked = "/" if target.startswith("/") else walked


def check_mounted(path: str) -> None:
    """Raise Unavailable if `path` would be made where fstab(5) has something mounted that is not: what was made there
    before is on that."""
    way = os.path.realpath(path) + "/"
    try:
        with open(FSTAB, encoding="utf-8", errors="surrogateescape") as lines:
            rows = [line.split() for line in lines if not line.lstrip().startswith("#")]
    except OSError:
        return
    places = {_unescaped(row[1]).rstrip("/"): row[0] for row in rows if len(row) > 2 and row[1].startswith("/")}
    expected = {place: source for place, source in places.items() if place and way.startswith(place + "/")}
    if not expected:
        return
    mounted = {point.target for point in mountinfo()}
    for place, source in expected.items():
        if os.path.realpath(place) not in mounted:
            raise Unavailable(
                f"nothing is mounted at {place}, where {FSTAB} has {source}, and {path} would be made anew there: "
                f"mount it (mount {place}), or choose another directory"
            )


def _check_closed(directory: str) -> None:
    status = os.lstat(directory)
    if not _is_trusted(status.st_uid):
        raise Unavailable(
            f"{directory} belongs to {_user(status.st_uid)}, who can put something else in the place of what is in it: "
            "choose a directory that only root can change"
        )
    mode = status.st_mode
    theirs = mode & stat.S_IWOTH or (mode & stat.S_IWGRP and status.st_gid not in _trusted_groups())
    if theirs and not mode & stat.S_ISVTX:
        who = "everybody" if mode & stat.S_IWOTH else f"group {status.st_gid}"
        raise Unavailable(
            f"{directory} can be written to by {who} (mode {stat.S_IMODE(mode):o}), who can put something else in the "
            "place of what is in it: choose a directory that only root can change"
        )


def _check_owner(path: str, status: os.stat_result) -> None:
    if not _is_trusted(status.st_uid):
        raise Unavailable(f"{path} belongs to {_user(status.st_uid)}, and its content is not to be trusted")


def _is_trusted(user: int) -> bool:
    """Root, we ourselves, and whoever has become us by sudo(8). In a user namespace also the users outside of it: their
    files are no less trustworthy than the namespace."""
    return user in (0, os.geteuid(), _number("SUDO_UID")) or (user == _overflow() and in_user_namespace())


def _trusted_groups() -> tuple[int, ...]:
    return 0, os.getegid(), _number("SUDO_GID")


def _number(variable: str) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else 0


def _overflow() -> int:
    with open("/proc/sys/kernel/overflowuid", encoding="ascii") as number:
        return int(number.read())


def _user(number: int) -> str:
    import pwd  # late: only for a message

    try:
        return f"the user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"the user {number}"


def _unescaped(field: str) -> str:
    """The text of a field of fstab(5), in which blanks are written in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
