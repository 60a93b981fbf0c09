"""A union mounted by the command line, as a user does it, and taken down again."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from drivers.api import Mount
from drivers.mounts.attached import mount_all, unmount_all
from unionfs.linux import consts, mounts
from unionfs.transport import control, device

TRANSPORTS = ("direct", "pyfuse3")

_DEADLINE = 30  # seconds; a mount or an unmount that takes longer hangs


@contextmanager
def mounted(values: Sequence[Mount]) -> Iterator[str]:
    """The tree of `values` at a temporary directory, as a container has it, for the time of the `with`."""
    target = tempfile.mkdtemp(prefix="mounted-")
    try:
        mount_all(values, target)
        try:
            yield target
        finally:
            unmount_all(target)
    finally:
        os.rmdir(target)


@contextmanager
def seen(path: str) -> Iterator[int]:
    """The root of what is mounted at `path`, as the engine gives it of a running container: for reading only."""
    harmless = consts.MOUNT_ATTR_RDONLY | consts.MOUNT_ATTR_NODEV | consts.MOUNT_ATTR_NOSUID | consts.MOUNT_ATTR_NOEXEC
    clone = mounts.open_tree(consts.AT_FDCWD, path, consts.OPEN_TREE_CLONE)
    try:
        mounts.mount_setattr(clone, "", consts.AT_EMPTY_PATH, attr_set=harmless)
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=clone)
    finally:
        os.close(clone)
    try:
        yield root
    finally:
        os.close(root)


class Union:
    """`branches` are directories, bottom to top; the last is writable. `path` is the mount point. `transport` is the
    option; what `options` say comes later and counts.

    The server's log is kept over remounts; `unmount` fails when an unknown exception was logged in it.
    """

    def __init__(
        self, directory: str, branches: Sequence[str], options: Sequence[str] = (), *, transport: str = "auto"
    ) -> None:
        self.branches = [os.fspath(branch) for branch in branches]
        self.options = [f"transport={transport}", *options]
        self.path = os.path.join(directory, "mnt")
        self.log = os.path.join(directory, "server.log")
        os.makedirs(self.path, exist_ok=True)

    @property
    def upper(self) -> str:
        return self.branches[-1].removesuffix("=rw")

    @property
    def command(self) -> list[str]:
        """The arguments of `unionfs` that mount it."""
        spec = ":".join(branch.replace(":", "\\:") for branch in self.branches)
        options = [word for option in self.options for word in ("-o", option)]
        return ["mount", spec, self.path, *options, "--log", self.log]

    def mount(self) -> Union:
        unionfs(*self.command)
        return self

    def unmount(self) -> None:
        unionfs("umount", self.path)
        self.check_log()

    def remount(self) -> None:
        self.unmount()
        self.mount()

    @property
    def mounted(self) -> bool:
        return mounts.mounted_at(os.path.realpath(self.path)) is not None

    def check_log(self) -> None:
        with open(self.log, encoding="utf-8", errors="replace") as log:
            text = log.read()
        assert "Traceback" not in text, f"the server met an exception it does not know:\n{text[-4000:]}"

    def close(self) -> None:
        """Unmount what is still mounted, whatever state it is in."""
        if self.mounted:
            try:
                self.unmount()
            finally:
                if self.mounted:
                    mounts.umount2(self.path, consts.MNT_DETACH)


def server_of(path: str) -> control.Server:
    """The process that serves the union mounted at `path`; to be closed."""
    point = mounts.mount_of(path)
    assert point is not None
    server = control.find(device.identity_of(point) or "")
    assert server is not None
    return server


def kill_server(path: str) -> None:
    """The server of the union mounted at `path` ends without having done anything about it."""
    server = server_of(path)
    try:
        os.kill(server.pid, signal.SIGKILL)
        select.select([server.pidfd], [], [])
    finally:
        server.close()


def unionfs(*arguments: str) -> None:
    """Run `unionfs` and fail with what it printed unless it exits 0."""
    done = subprocess.run(
        [sys.executable, "-m", "unionfs", *arguments], capture_output=True, text=True, timeout=_DEADLINE, check=False
    )
    assert done.returncode == 0, f"unionfs {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
