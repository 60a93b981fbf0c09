"""The options of a mount in an OCI configuration, sorted into what mount_setattr, fsconfig and propagation take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from unionfs.linux import consts

# option -> (bits set, bits cleared), of mount_setattr(2)
_ATTRIBUTES = {
    "ro": (consts.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, consts.MOUNT_ATTR_RDONLY),
    "nosuid": (consts.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, consts.MOUNT_ATTR_NOSUID),
    "nodev": (consts.MOUNT_ATTR_NODEV, 0),
    "dev": (0, consts.MOUNT_ATTR_NODEV),
    "noexec": (consts.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, consts.MOUNT_ATTR_NOEXEC),
    "relatime": (0, consts.MOUNT_ATTR__ATIME),
    "noatime": (consts.MOUNT_ATTR_NOATIME, consts.MOUNT_ATTR__ATIME),
    "strictatime": (consts.MOUNT_ATTR_STRICTATIME, consts.MOUNT_ATTR__ATIME),
    "nodiratime": (consts.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, consts.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (consts.MOUNT_ATTR_NOSYMFOLLOW, 0),
}
_PROPAGATION = {
    "private": consts.MS_PRIVATE,
    "slave": consts.MS_SLAVE,
    "shared": consts.MS_SHARED,
    "unbindable": consts.MS_UNBINDABLE,
}
_SILENT = {"defaults", "bind", "rbind"}


class MountOptions(NamedTuple):
    attr_set: int
    attr_clr: int
    propagation: int  # 0: private
    recursive: bool  # rbind: the mounts below the source come along
    data: tuple[tuple[str, str | None], ...]  # for the file system: (key, value) or (flag, None)


def sort(options: Iterable[str]) -> MountOptions:
    """Later options win over earlier ones. `rro` and its like of the runtime-spec mean the same as `ro` here: the
    attributes of a bind are set on everything below it, or a volume asked to be read-only would have writable parts."""
    attr_set = attr_clr = propagation = 0
    recursive = False
    data: list[tuple[str, str | None]] = []
    for option in options:
        plain = option[1:] if option[:1] == "r" and option[1:] in {*_ATTRIBUTES, *_PROPAGATION} else option
        if plain in _ATTRIBUTES:
            on, off = _ATTRIBUTES[plain]
            attr_set, attr_clr = attr_set & ~off | on, attr_clr & ~on | off
        elif plain in _PROPAGATION:
            propagation = _PROPAGATION[plain]
        elif option in _SILENT:
            recursive = recursive or option == "rbind"
        else:
            key, equals, value = option.partition("=")
            data.append((key, value if equals else None))
    return MountOptions(attr_set, attr_clr, propagation, recursive, tuple(data))
