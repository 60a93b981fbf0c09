"""`mount -o remount,…`: what can change while a union is mounted, and who has to know.

    kernel    ro, rw, nosuid, nodev, noexec, nosymfollow      what the mount allows, by mount(2)
    server    noatime, nodiratime, relatime, strictatime      it reads the writable branch (union/own_mount)
              ro                                              it brings that to the disk

Everything else is fixed for as long as it is mounted, and asking for another value is refused.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn

from unionfs import options
from unionfs.linux import consts, files, mounts
from unionfs.linux.mounts import MountPoint
from unionfs.transport import control, device, info
from unionfs.union.branch import Branch

_ACCESS = ("noatime", "nodiratime", "relatime", "strictatime")
# What the table of mounts shows, and mount(8) therefore says again.
_SHOWN = ("user_id", "group_id", "max_read", "blksize")
# A disk may take long to write down what it has.
_SYNC_SECONDS = 600.0


def remount(
    mountpoint: str, source: str, listed: Sequence[str], *, sloppy: bool = False, fake: bool = False
) -> None:
    """Give the union at `mountpoint` the flags of the `listed` options and no others; mount(8) adds those it has.
    `source` is what it was mounted from, as branches or as a name. With `fake` it is only looked whether that can be.

    Raises OptionError, and OSError(errno, what is wrong; what to do, mountpoint): EPERM, EBUSY, EROFS; EINVAL, what is
    fixed, or no union; ENOTCONN, ETIMEDOUT, its server.
    """
    fd = os.open(mountpoint, os.O_PATH | os.O_CLOEXEC)  # and nothing by its name after that
    try:
        here = os.fsdecode(files.fd_path(fd))
        point = mounts.mount_of(here)
        identity = None if point is None else device.identity_of(point)
        if point is None or identity is None:
            raise OSError(errno.EINVAL, "no union is mounted there", mountpoint)
        said = point.super_options.split(",")
        words = [word for word in listed if not (word in said and word.partition("=")[0] in _SHOWN)]
        spec = None if ":" not in source or source == point.source else source
        change = options.parse_change(spec, words, sloppy=sloppy)
        _check_fixed(change, point, info.ask(mountpoint), mountpoint)
        if os.geteuid() != 0:
            raise OSError(errno.EPERM, "only root can remount", mountpoint)
        if not fake:
            _change(change, identity, point, here, mountpoint)
    finally:
        os.close(fd)


def _change(change: options.Change, identity: str, point: MountPoint, here: str, mountpoint: str) -> None:
    _tell(identity, _access(change.flags), mountpoint)
    try:
        mounts.mount("none", here, None, consts.MS_REMOUNT | device.mount_flags(change.flags))
    except OSError as error:
        _tell(identity, _access(point.options.split(",")), mountpoint)
        busy = f"busy; end what writes to it (see 'fuser -vm {mountpoint}') and try again"
        text = busy if error.errno == errno.EBUSY else f"cannot be remounted ({error.strerror})"
        raise OSError(error.errno, text, mountpoint) from None
    if "ro" in change.flags:
        _tell(identity, b"sync\n", mountpoint)


def _check_fixed(change: options.Change, point: MountPoint, facts: info.Facts, mountpoint: str) -> None:
    shown = point.super_options.split(",")
    now = {
        "passthrough": facts["lends"], "volatile": facts["volatile"], "xino": facts["xino"], "spin": facts["spin_us"],
        "transport": facts["transport"]["name"], "fsname": point.source,
        "subtype": point.fstype.removeprefix("fuse."), "allow_other": "allow_other" in shown,
    }  # fmt: skip
    if facts["transport"]["name"] == "pyfuse3":  # which lends nothing, whatever is asked for
        now["passthrough"] = change.given.get("passthrough")
    for name, value in change.given.items():
        if value not in (now[name], "auto"):
            _refuse(f"{name} cannot be changed while it is mounted", mountpoint)
    if change.branches is not None:
        asked = [os.path.realpath(branch.path) for branch in change.branches]
        if asked != [branch["path"] for branch in facts["branches"]]:
            _refuse("branches cannot be changed while it is mounted", mountpoint)
    for flag in ("sync", "dirsync"):
        if (flag in change.flags) != (flag in shown):
            _refuse(f"{flag} cannot be changed while it is mounted", mountpoint)
    if "ro" not in change.flags and facts["branches"][0]["permission"] != "rw":
        text = "its branches are open for reading only: to write, unmount it and mount it with a writable branch and rw"
        raise OSError(errno.EROFS, text, mountpoint)


def _refuse(text: str, mountpoint: str) -> NoReturn:
    raise OSError(errno.EINVAL, f"{text}: unmount it and mount it anew", mountpoint)


def _access(flags: Collection[str]) -> bytes:
    return f"access {','.join(flag for flag in _ACCESS if flag in flags)}\n".encode()


def _tell(identity: str, order: bytes, mountpoint: str) -> None:
    said = control.ask(identity, order, patience=_SYNC_SECONDS)
    if said is None:
        raise OSError(errno.ENOTCONN, "its server has ended", mountpoint)
    if error := json.loads(said).get("error"):
        raise OSError(errno.EIO, error, mountpoint)


# The server's side.


def orders(branches: Sequence[Branch]) -> dict[bytes, Callable[[bytes], Mapping[str, object]]]:
    """What a server does for it, by control's words."""

    def note_access(flags: bytes) -> None:
        for branch in branches:
            branch.note_access(flags.decode().split(","))

    def sync(_: bytes) -> None:
        for branch in branches:
            if branch.writable:
                files.syncfs(branch.fd)

    return {b"access": _told(note_access), b"sync": _told(sync)}


def _told(act: Callable[[bytes], None]) -> Callable[[bytes], Mapping[str, object]]:
    def answer(rest: bytes) -> Mapping[str, object]:
        try:
            act(rest)
        except OSError as error:
            return {"error": error.strerror or str(error)}
        return {}

    return answer
