"""Mounting: mount(2), umount2(2), pivot_root(2), the fsopen family, detached mounts, and /proc/self/mountinfo."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from unionfs.linux import consts, libc
from unionfs.linux.processes import unshare

_char_p, _int, _uint, _ulong = ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_ulong

_mount = libc.bind("mount", _char_p, _char_p, _char_p, _ulong, _char_p)
_umount2 = libc.bind("umount2", _char_p, _int)
_pivot_root = libc.syscall({"x86_64": 155, "aarch64": 41}.get(os.uname().machine, 155), _char_p, _char_p)
_open_tree = libc.syscall(consts.NR_open_tree, _int, _char_p, _uint)
_move_mount = libc.syscall(consts.NR_move_mount, _int, _char_p, _int, _char_p, _uint)
_fsopen = libc.syscall(consts.NR_fsopen, _char_p, _uint)
_fsconfig = libc.syscall(consts.NR_fsconfig, _int, _uint, _char_p, _char_p, _int)
_fsmount = libc.syscall(consts.NR_fsmount, _int, _uint, _uint)
_mount_setattr = libc.syscall(
    consts.NR_mount_setattr, _int, _char_p, _uint, ctypes.c_void_p, ctypes.c_size_t
)

StrPath = str | bytes

_PLACE = "/proc"


class mount_attr(ctypes.Structure):
    """linux/mount.h"""

    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def mount(
    source: StrPath, target: StrPath, fstype: StrPath | None, flags: int = 0, data: StrPath | None = None
) -> None:
    """mount(2); the OSError names the target."""
    try:
        _mount(
            os.fsencode(source),
            os.fsencode(target),
            None if fstype is None else os.fsencode(fstype),
            flags,
            None if data is None else os.fsencode(data),
        )
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None


def umount2(target: StrPath, flags: int = 0) -> None:
    _umount2(os.fsencode(target), flags)


def pivot_root(new_root: StrPath, put_old: StrPath) -> None:
    _pivot_root(os.fsencode(new_root), os.fsencode(put_old))


def open_tree(dirfd: int, path: StrPath, flags: int) -> int:
    """A descriptor of the mount at `path`; with OPEN_TREE_CLONE, of a detached copy of it. See open_tree(2)."""
    return _open_tree(dirfd, os.fsencode(path), flags | consts.OPEN_TREE_CLOEXEC)


def move_mount(from_fd: int, from_path: StrPath, to_fd: int, to_path: StrPath, flags: int) -> None:
    _move_mount(from_fd, os.fsencode(from_path), to_fd, os.fsencode(to_path), flags)


def fsopen(fstype: str) -> int:
    return _fsopen(fstype.encode(), consts.FSOPEN_CLOEXEC)


def fsconfig(fs_fd: int, command: int, key: str | None = None, value: StrPath | None = None, aux: int = 0) -> None:
    """fsconfig(2). A refusal's reason is read from the context descriptor's message log into the error's text."""
    try:
        _fsconfig(
            fs_fd, command, None if key is None else key.encode(), None if value is None else os.fsencode(value), aux
        )
    except OSError as error:
        reasons = list(_messages(fs_fd))
        raise OSError(error.errno, "; ".join([error.strerror or "", *reasons]), key) from None


def _messages(fs_fd: int) -> Iterator[str]:
    """The kernel's explanations queued on a file system context: lines `e text`, `w text`, `i text`; ENODATA ends."""
    while True:
        try:
            line = os.read(fs_fd, 8192)
        except OSError:
            return
        if not line:
            return
        yield line.decode(errors="replace").strip()[2:]


def fsmount(fs_fd: int, attributes: int = 0) -> int:
    return _fsmount(fs_fd, consts.FSMOUNT_CLOEXEC, attributes)


def new_mount(fstype: str, source: str, data: Sequence[tuple[str, str | None]], attributes: int = 0) -> int:
    """A new file system of that type, mounted nowhere: the descriptor of the mount. `data` are its options by name,
    those that are flags with None; `attributes` are MOUNT_ATTR_*. See fsopen(2)."""
    context = fsopen(fstype)
    try:
        if source:
            fsconfig(context, consts.FSCONFIG_SET_STRING, "source", source)
        for key, value in data:
            command = consts.FSCONFIG_SET_FLAG if value is None else consts.FSCONFIG_SET_STRING
            fsconfig(context, command, key, value)
        fsconfig(context, consts.FSCONFIG_CMD_CREATE)
        return fsmount(context, attributes)
    finally:
        os.close(context)


def mount_setattr(
    dirfd: int, path: StrPath, flags: int, *, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0
) -> None:
    attributes = mount_attr(attr_set, attr_clr, propagation, 0)
    _mount_setattr(dirfd, os.fsencode(path), flags, ctypes.byref(attributes), ctypes.sizeof(attributes))


def detached(mounting: Callable[[str], None]) -> int:
    """What `mounting` mounts with mount(2) at the place that it is given, as a descriptor of a detached mount.

    For what fsopen(2) cannot make. It is mounted in a mount namespace that one thread has for that moment. No mount
    goes from there to another: the place is /proc, which every namespace of ours has and which is made private there.
    Raises what `mounting` raises.
    """
    import threading  # late: every command would pay for it

    made: list[int] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            unshare(consts.CLONE_NEWNS)  # and CLONE_FS with it: unshare(2)
            mount("none", _PLACE, None, consts.MS_PRIVATE)
            mounting(_PLACE)
            made.append(open_tree(consts.AT_FDCWD, _PLACE, consts.OPEN_TREE_CLONE))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    try:
        thread.start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no thread can be started") from None
    thread.join()
    # The namespace holds a copy of every mount there is until the kernel is done with the thread, which join() does not
    # wait for.
    while os.path.exists(f"/proc/self/task/{thread.native_id}"):
        time.sleep(0.0001)
    for error in failed:
        raise error
    return made[0]


class MountPoint(NamedTuple):
    """One line of /proc/PID/mountinfo (proc(5)), escapes undone."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    target: str
    options: str
    fstype: str
    source: str
    super_options: str


def _unescape(field: str) -> str:
    """Undo the octal escapes of seq_file's mangle_path: space, tab, newline, backslash, #."""
    if "\\" not in field:
        return field
    raw = field.encode("utf-8", "surrogateescape")
    parts = raw.split(b"\\")
    out = parts[0] + b"".join(bytes([int(p[:3], 8)]) + p[3:] for p in parts[1:])
    return out.decode("utf-8", "surrogateescape")


class MountTable:
    """The mounts of a process's mount namespace, to be read any number of times: that takes no further descriptor."""

    def __init__(self, pid: int | str = "self") -> None:
        self._fd = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> list[MountPoint]:
        """In mount order: the last one with a given target is on top."""
        table = b""
        while part := os.pread(self._fd, 1 << 16, len(table)):
            table += part
        # A carriage return in a name is not escaped (fs/proc_namespace.c), and must not end a line.
        return [_point(line) for line in table.decode("utf-8", "surrogateescape").split("\n") if line]

    def close(self) -> None:
        os.close(self._fd)


def _point(line: str) -> MountPoint:
    left, right = line.split(" - ", 1)
    ids = left.split(" ")
    fstype, source, super_options = right.split(" ", 2)
    return MountPoint(
        int(ids[0]), int(ids[1]), ids[2], _unescape(ids[3]), _unescape(ids[4]), ids[5],
        fstype, _unescape(source), super_options,
    )  # fmt: skip


def mountinfo(pid: int | str = "self") -> list[MountPoint]:
    """The mounts of a process's mount namespace, in mount order: the last one with a given target is on top."""
    table = MountTable(pid)
    try:
        return table.read()
    finally:
        table.close()


def mounted_at(target: str) -> MountPoint | None:
    """The topmost mount whose mount point is exactly `target` (an absolute, resolved path), or None."""
    found = None
    for point in mountinfo():
        if point.target == target:
            found = point
    return found


def mount_of(path: StrPath) -> MountPoint | None:
    """The mount whose root is `path`, or None. Its file system is not asked for anything: it is not told of an opening
    with O_PATH (open(2))."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as fields:
            mount_id = next(int(line.split()[1]) for line in fields if line.startswith("mnt_id:"))
        target = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return next((p for p in mountinfo() if p.mount_id == mount_id and p.target == target), None)


def mount_showing(device: int) -> MountPoint | None:
    """A mount of the file system with this st_dev; None where none shows it (a subvolume of btrfs)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    return next((point for point in mountinfo() if point.device == number), None)


def file_system_of(device: int) -> str | None:
    """The type of the file system with this st_dev; None where no mount shows it."""
    point = mount_showing(device)
    return None if point is None else point.fstype
