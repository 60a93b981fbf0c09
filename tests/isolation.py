"""What a test run has for itself: mounts, a network, control groups, and none of what the user or the host has set."""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import signal
import socket
import struct
import uuid
from contextlib import suppress

from runtime.oci import cgroups
from unionfs.linux import consts, libc, mounts

MARK = "FUSE_AUFS_TEST_RUN"
# What a user may have set for our commands, or for the programs they call, and no test rests on.
_SETTINGS = (
    "FUSE_AUFS_ROOT", "FUSE_AUFS_STATE", "FUSE_AUFS_STORAGE_DRIVER", "FUSE_AUFS_STORAGE_OPT", "FUSE_AUFS_DEBUG",
    "FUSE_AUFS_CONFIG", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "LANG", "LANGUAGE", "TZ",
)
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_GROUP, _RUN = "test-run-", "tests"


def isolate() -> None:
    """Give this process private mount and network namespaces (loopback up, nothing forwarded), control groups that no
    other run sees, the usual umask, no signal ignored or blocked and none of a user's settings, and mark it for
    `leaks.processes`.

    Called before anything else runs in the process; without the privilege (not root) nothing changes.
    """
    os.environ[MARK] = f"{os.getpid()}-{uuid.uuid4().hex}"
    os.umask(0o022)
    _hear_signals()
    for name in _SETTINGS:
        os.environ.pop(name, None)
    os.environ["LC_ALL"] = "C.UTF-8"
    if os.geteuid() != 0:
        return
    try:
        _unshare(consts.CLONE_NEWNS | consts.CLONE_NEWNET)
    except OSError:
        return
    mounts.mount("none", "/", None, consts.MS_REC | consts.MS_PRIVATE)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = bytearray(struct.pack("16sH14x", b"lo", 0))
        fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        name, flags = struct.unpack("16sH14x", request)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name, flags | _IFF_UP))
    with open("/proc/sys/net/ipv4/ip_forward", "w", encoding="ascii") as forward:  # taken over from the host
        forward.write("0")
    with suppress(OSError):  # they stay shared: read-only, as in a container
        _own_control_groups()


def _hear_signals() -> None:
    """A shell's background jobs ignore SIGINT and SIGQUIT, what nohup starts SIGHUP: our programs would inherit it."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _unshare(flags: int) -> None:
    libc.bind("unshare", ctypes.c_int)(flags)


def _own_control_groups() -> None:
    """A group below the one that this process is in becomes what it sees as the top, in every hierarchy."""
    name = f"{_GROUP}{os.getpid()}"
    left: list[tuple[int, str]] = []  # where we came from, and what is to be removed there
    atexit.register(_leave, os.getpid(), left)
    found = cgroups.hierarchies()
    for hierarchy in found:
        # Of version 2 below the top: where processes are, there is nothing to hand down.
        before = hierarchy.mount_point + ("" if hierarchy.version == 2 else _member_of(hierarchy).rstrip("/"))
        _sweep(before)
        os.mkdir(f"{before}/{name}")
        left.append((os.open(before, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), name))
        _hand_down(hierarchy, before, f"{before}/{name}")
        _write(f"{before}/{name}/cgroup.procs", str(os.getpid()))
    _unshare(consts.CLONE_NEWCGROUP)
    for hierarchy, (above, _) in zip(found, left, strict=True):
        mounts.mount(f"/proc/self/fd/{above}/{name}", hierarchy.mount_point, None, consts.MS_BIND)
        if hierarchy.version == 2:
            # A group with processes in it gives no controllers to those below (cgroups(7), no internal processes).
            os.mkdir(f"{hierarchy.mount_point}/{_RUN}")
            _write(f"{hierarchy.mount_point}/{_RUN}/cgroup.procs", str(os.getpid()))


def _hand_down(hierarchy: cgroups.Hierarchy, above: str, below: str) -> None:
    """Let `below` have what `above` has. Raises OSError where `above` cannot give it."""
    if hierarchy.version == 2:
        for controller in hierarchy.controllers:
            _write(f"{above}/cgroup.subtree_control", f"+{controller}")
    elif "cpuset" in hierarchy.controllers:
        for file in ("cpuset.cpus", "cpuset.mems"):
            _write(f"{below}/{file}", _read(f"{above}/{file}"))


def _member_of(hierarchy: cgroups.Hierarchy) -> str:
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == ",".join(hierarchy.controllers):
            return path
    return "/"


def _sweep(above: str) -> None:
    """Remove what a run that was killed has left: groups go only when nobody is in them."""
    for name in os.listdir(above):
        if name.startswith(_GROUP) and not os.path.isdir(f"/proc/{name.removeprefix(_GROUP)}"):
            _remove(f"{above}/{name}")


def _remove(top: str) -> None:
    for directory, _, _ in os.walk(top, topdown=False):
        with suppress(OSError):
            os.rmdir(directory)


def _leave(pid: int, left: list[tuple[int, str]]) -> None:
    if os.getpid() != pid:
        return  # a fork of the run
    for above, name in left:
        with suppress(OSError):
            _write(f"/proc/self/fd/{above}/cgroup.procs", str(pid))
        _remove(f"/proc/self/fd/{above}/{name}")


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
