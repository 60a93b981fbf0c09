"""The kernel's overlayfs as a detached mount: many layers, any names, and volatile ones more than once.

How a layer is named, in the order of preference (Documentation/filesystems/overlayfs.rst, "Layers via file descriptor";
fs/overlayfs/params.c):

    FSCONFIG_SET_FD      lowerdir+, upperdir, workdir    Linux 6.13; names are not parsed at all
    FSCONFIG_SET_STRING  lowerdir+, upperdir, workdir    Linux 6.8; 255 bytes, longer ones as /proc/self/fd/N
    mount(2)             lowerdir=A:B,upperdir=…         a page of options: /proc/self/fd/N each, about 220 layers;
                                                         in a mount namespace of its own (linux.mounts.detached)

`options` are those of a Mount("overlay", …) without the flags of mount(2): "lowerdir+=DIR" once per layer, top first,
"upperdir=", "workdir=", and overlayfs's others as they are. Failures are OSError with what the kernel said.

An overlay writes with the capabilities of whoever mounted it (ovl_override_creds()). It is mounted without
CAP_SYS_RESOURCE, for quotas do not limit whoever has that (ignore_hardlimit(), fs/quota/dquot.c).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache

from drivers.errors import Unavailable
from unionfs.linux import consts, mounts
from unionfs.linux.processes import WithoutCapability

# OVL_MAX_STACK (fs/overlayfs/params.h): layers below the writable one.
MAX_LAYERS = 500

# Options whose value is one directory.
_DIRECTORIES = ("lowerdir+", "upperdir", "workdir")
_BOOT = "boot"


def overlay_tree(source: str, options: Sequence[str], attributes: int = 0) -> int:
    """The overlay as a descriptor of a detached mount: it ends when the descriptor is closed, unless it is attached.

    `attributes` are MOUNT_ATTR_*. Raises OSError, E2BIG with how many layers this kernel would take; Unavailable for a
    volatile one that a crash may have torn.
    """
    _allow_volatile(options)
    if not takes_layers():
        tree = mounts.detached(lambda place: _mount_by_data(source, options, place))
        mounts.mount_setattr(tree, "", consts.AT_EMPTY_PATH, attr_set=attributes)
        return tree
    with ExitStack() as held:
        context = mounts.fsopen("overlay")
        held.callback(os.close, context)
        for option in options:
            key, equals, value = option.partition("=")
            if key in _DIRECTORIES:
                _set_directory(context, key, value, held)
            elif equals:
                mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, key, value)
            else:
                mounts.fsconfig(context, consts.FSCONFIG_SET_FLAG, key)
        mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, "source", source)
        with WithoutCapability(consts.CAP_SYS_RESOURCE):
            mounts.fsconfig(context, consts.FSCONFIG_CMD_CREATE)
        return mounts.fsmount(context, attributes)


def _mount_by_data(source: str, options: Sequence[str], target: str) -> None:
    """mount(2) with an option string, for kernels without `lowerdir+`."""
    with ExitStack() as held:
        layers, rest = [], []
        for option in options:
            key, _, value = option.partition("=")
            if key == "lowerdir+":
                layers.append(_by_descriptor(value, held))
            elif key in _DIRECTORIES:
                rest.append(f"{key}={_by_descriptor(value, held)}")
            else:
                rest.append(option)
        data = ",".join([f"lowerdir={':'.join(layers)}", *rest] if layers else rest)
        room = os.sysconf("SC_PAGE_SIZE") - 1
        if len(data) > room:
            excess = len(data) - room
            fit = len(layers)
            while fit and excess > 0:
                fit -= 1
                excess -= len(layers[fit]) + 1
            raise OSError(
                errno.E2BIG,
                f"{len(layers)} layers, of which {fit} fit into what this kernel takes: Linux 6.8 takes {MAX_LAYERS}",
                target,
            )
        with WithoutCapability(consts.CAP_SYS_RESOURCE):
            mounts.mount(source, target, "overlay", 0, data)


@cache
def takes_layers() -> bool:
    """Whether this kernel's overlayfs takes layers one by one (`lowerdir+`, Linux 6.8).

    Before 6.5 overlayfs had no parameter table of its own and accepted any key until the superblock was made, so a key
    that nobody has tells the two apart (fs/fs_context.c, legacy_parse_param).
    """
    try:
        return not _accepts("no-such-key") and _accepts("lowerdir+")
    except OSError:
        return False


@cache
def takes_descriptors() -> bool:
    """Whether this kernel's overlayfs takes layers as descriptors (Linux 6.13)."""
    with ExitStack() as held:
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, root)
        try:
            context = mounts.fsopen("overlay")
            held.callback(os.close, context)
            mounts.fsconfig(context, consts.FSCONFIG_SET_FD, "lowerdir+", aux=root)
        except OSError:
            return False
    return True


def _accepts(key: str) -> bool:
    context = mounts.fsopen("overlay")
    try:
        mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, key, "/")
    except OSError:
        return False
    finally:
        os.close(context)
    return True


def _set_directory(context: int, key: str, path: str, held: ExitStack) -> None:
    if takes_descriptors():
        # Not O_PATH: whether that is a descriptor to fsconfig(2) has changed between versions.
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounts.fsconfig(context, consts.FSCONFIG_SET_FD, key, aux=descriptor)
        finally:
            os.close(descriptor)
        return
    if len(os.fsencode(path)) > 255:
        path = _by_descriptor(path, held)
    # Two of the three keys undo escapes (ovl_mount_dir, but ovl_mount_dir_noesc).
    escaped = path if key == "lowerdir+" else path.replace("\\", "\\\\")
    mounts.fsconfig(context, consts.FSCONFIG_SET_STRING, key, escaped)


def _by_descriptor(path: str, held: ExitStack) -> str:
    """A name of the directory that is short and free of separators; valid as long as `held`."""
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    held.callback(os.close, descriptor)
    return f"/proc/self/fd/{descriptor}"


def _allow_volatile(options: Sequence[str]) -> None:
    """Let a volatile overlay be mounted once more, if the machine has not been restarted since it was first mounted.

    The kernel marks the work directory of a volatile overlay and takes no marked one, ever: what was written need not
    have reached the disk (overlayfs.rst, "Volatile mount"). But as long as this kernel runs it is all there.
    """
    if "volatile" not in options:
        return
    work = next(option for option in options if option.startswith("workdir=")).partition("=")[2]
    check_volatile(work)
    mark = _mark(work)
    if os.path.isdir(mark):
        for name in os.listdir(mark):
            os.unlink(os.path.join(mark, name))
        os.rmdir(mark)
    if _boot_of(work) != _this_boot():
        with open(os.path.join(work, _BOOT), "w", encoding="ascii") as file:
            file.write(_this_boot())


def check_volatile(work: str) -> None:
    """Raise Unavailable if a volatile overlay with this work directory was mounted before the machine was restarted."""
    if os.path.isdir(_mark(work)) and _boot_of(work) != _this_boot():
        raise Unavailable(
            f"{os.path.dirname(work)} was written without syncing (volatile) before this machine was restarted, "
            "so it may be torn: remove the container"
        )


def _mark(work: str) -> str:
    return os.path.join(work, "work", "incompat", "volatile")


def _boot_of(work: str) -> str:
    try:
        with open(os.path.join(work, _BOOT), encoding="ascii", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _this_boot() -> str:
    """The identity of this run of the kernel; see random(4)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
