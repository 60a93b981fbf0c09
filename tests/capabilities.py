"""What this machine can do: a probe a name, each returning None when it can and otherwise the reason in a sentence.

Tests say `@pytest.mark.needs("fuse", "program:strace")`; conftest.py skips them with the reason.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable

from unionfs.linux import consts, mounts


def _root() -> str | None:
    return None if os.geteuid() == 0 else "it needs root"


def _fuse() -> str | None:
    if reason := _root():
        return reason
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    return None


def _pyfuse3() -> str | None:
    """The transport of that name."""
    if reason := _fuse():
        return reason
    try:
        import pyfuse3  # noqa: F401
    except ImportError as error:
        return f"pyfuse3 cannot be imported: {error}"
    return None


def _passthrough() -> str | None:
    if reason := _fuse():
        return reason
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    return None if (major, minor) >= (6, 9) else "FUSE passthrough takes Linux 6.9"


def _overlay() -> str | None:
    return _root() or _try_mount("overlay")


def _tmpfs() -> str | None:
    return _root() or _try_mount("tmpfs")


def _try_mount(fstype: str) -> str | None:
    with tempfile.TemporaryDirectory() as directory:
        parts = {name: os.path.join(directory, name) for name in ("lower", "upper", "work", "merged")}
        for part in parts.values():
            os.mkdir(part)
        data = "lowerdir={lower},upperdir={upper},workdir={work}".format(**parts) if fstype == "overlay" else None
        try:
            mounts.mount(fstype, parts["merged"], fstype, 0, data)
        except OSError as error:
            return f"{fstype} cannot be mounted in the temporary directory: {error.strerror}"
        mounts.umount2(parts["merged"], consts.MNT_DETACH)
    return None


def _tmpfs_xattr() -> str | None:
    """user.* on tmpfs came with Linux 6.6."""
    if reason := _tmpfs():
        return reason
    with tempfile.TemporaryDirectory() as directory:
        mounts.mount("probe", directory, "tmpfs")
        try:
            os.setxattr(directory, "user.test", b"1")
        except OSError as error:
            return f"user.test cannot be set as an extended attribute on tmpfs: {error.strerror}"
        finally:
            mounts.umount2(directory, consts.MNT_DETACH)
    return None


def _loop() -> str | None:
    """A free loop device that can be attached: losetup says so by attaching a small file."""
    if reason := _root() or _program("losetup"):
        return reason
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(1 << 20)
        attach = subprocess.run(["losetup", "--find", "--show", image.name], capture_output=True, text=True)
        if attach.returncode:
            return f"no loop device can be attached: {attach.stderr.strip()}"
        subprocess.run(["losetup", "--detach", attach.stdout.strip()], check=True)
    return None


def _ptrace() -> str | None:
    """strace can be installed and still be forbidden (yama, seccomp)."""
    if reason := _program("strace"):
        return reason
    trace = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    return None if trace.returncode == 0 else f"strace does not work here: {trace.stderr.strip().splitlines()[-1]}"


def _xattr(name: str) -> str | None:
    with tempfile.TemporaryDirectory() as directory:
        try:
            os.setxattr(directory, name, b"1")
        except OSError as error:
            return f"{name} cannot be set as an extended attribute in the temporary directory: {error.strerror}"
    return None


def _program(name: str) -> str | None:
    return None if shutil.which(name) else f"{name} is not installed"


def _netns() -> str | None:
    if reason := _root():
        return reason
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return None if probe.returncode == 0 else f"a network namespace cannot be made: {probe.stderr.strip()}"


def cgroup_hierarchy() -> str | None:
    """A mounted hierarchy in whose root a group can be made: version 2, else a controller of version 1."""
    for point in mounts.mountinfo():
        writable = "rw" in point.options.split(",") and os.access(point.target, os.W_OK)
        if point.fstype in ("cgroup2", "cgroup") and writable:
            return point.target
    return None


def _cgroups() -> str | None:
    return _root() or (None if cgroup_hierarchy() else "no control group hierarchy is mounted writable")


def _zfs() -> str | None:
    from drivers.zfs.command import missing  # late: most tests ask for other things

    return _root() or missing() or None


_PROBES: dict[str, Callable[[], str | None]] = {
    "root": _root,
    "fuse": _fuse,
    "pyfuse3": _pyfuse3,
    "passthrough": _passthrough,
    "overlay": _overlay,
    "tmpfs": _tmpfs,
    "tmpfs-xattr": _tmpfs_xattr,
    "cgroups": _cgroups,
    "loop": _loop,
    "ptrace": _ptrace,
    "zfs": _zfs,
    "netns": _netns,
    "user-xattr": lambda: _xattr("user.test"),
    "trusted-xattr": lambda: _xattr("trusted.test"),
}


@functools.cache
def missing(name: str) -> str | None:
    """Why the capability `name` is missing, or None; `program:NAME` asks for a program on PATH."""
    kind, _, argument = name.partition(":")
    return _program(argument) if kind == "program" else _PROBES[name]()
