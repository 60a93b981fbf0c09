"""Unions of one lower and one upper directory: kernel overlayfs, ours, and the peers, each mounted as its users do.

Here no driver is in between (subjects.py has those), so all unions of a question share one lower directory, filled
once; each gets an upper directory of its own, empty at every mount. What they are given:

    overlay2          mount(2), with the features that the driver overlay2 sets
    fuse-aufs         `unionfs mount -o br=UPPER=rw:LOWER=rr`, whatever transport it takes by itself
    fuse-aufs:NAME    the same with `-o transport=NAME`
    the peers         as peers.py says

The server of a FUSE union is a process of its own. Not thread-safe.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from benchmarks import peers
from benchmarks.subjects import Layer, flush, split_name
from drivers import fuse_aufs, overlay2
from drivers.api import Mount
from drivers.errors import DriverError
from drivers.mounts.attached import mount_all, unmount_all
from unionfs.linux.mounts import mount_of
from unionfs.transport import control, device


class Server(Protocol):
    """What answers for one mount. `pid` is None where that is the kernel, or nothing yet."""

    @property
    def pid(self) -> int | None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def restart(self) -> None: ...


class Mounts:
    """A Mount value mounted at a target; its server ends when the mount does."""

    def __init__(self, mount: Mount, target: str) -> None:
        self._mount = mount
        self._target = target

    @property
    def pid(self) -> int | None:
        point = mount_of(self._target)
        identity = None if point is None else device.identity_of(point)
        server = None if identity is None else control.find(identity)
        if server is None:
            return None
        server.close()
        return server.pid

    def start(self) -> None:
        mount_all([self._mount], self._target)
        os.stat(self._target)

    def stop(self) -> None:
        unmount_all(self._target)

    def restart(self) -> None:
        self.stop()
        self.start()


@dataclass
class Mounted:
    """A union while it is mounted."""

    path: str
    remount: Callable[[], None]  # what the union itself remembered is forgotten
    _server: Server

    def server_pid(self) -> int:
        """The process id of the server; another one after a remount. Raises OSError where there is none."""
        pid = self._server.pid
        if pid is None:
            raise OSError(f"no process serves {self.path}")
        return pid


@dataclass(frozen=True)
class Union:
    """`copies_up` is false where a file of the lower directory can be neither changed nor removed."""

    name: str
    work: str  # an existing directory, on the file system of the lower directories it is given

    @property
    def copies_up(self) -> bool:
        return self.name != "mergerfs"

    @property
    def has_server(self) -> bool:
        return self.name != "overlay2"

    @contextmanager
    def over(self, lower: str) -> Iterator[Mounted]:
        """Mount `lower` with a new, empty upper directory. Raises OSError; DriverError where ours does not mount."""
        with tempfile.TemporaryDirectory(prefix="top-", dir=self.work) as top:
            upper, work, target = (os.path.join(top, name) for name in ("upper", "work", "tree"))
            for directory in (upper, work, target):
                os.mkdir(directory)
            server = self._server(lower, upper, work, target)
            try:
                server.start()
                yield Mounted(target, server.restart, server)
            finally:
                server.stop()

    def _server(self, lower: str, upper: str, work: str, target: str) -> Server:
        if self.name in peers.COMMANDS:
            return peers.Server(peers.COMMANDS[self.name]([lower], upper, work, target), target)
        if self.name == "overlay2":
            return Mounts(overlay2.overlay([lower], upper, work), target)
        _, options = split_name(self.name)
        union = fuse_aufs.union([(upper, "rw"), (lower, "rr")])
        return Mounts(Mount(union.type, union.source, (*union.options, *options)), target)

    def why_not(self) -> str | None:
        """A sentence on why it cannot be mounted here, or None."""
        with tempfile.TemporaryDirectory(dir=self.work) as lower:
            try:
                with self.over(lower):
                    return None
            except (OSError, DriverError) as error:
                return str(error)


@contextmanager
def lower_directory(work: str, fill: Layer) -> Iterator[str]:
    """A directory below `work` that `fill` has filled and that is on disk; gone at the end."""
    with tempfile.TemporaryDirectory(prefix="lower-", dir=work) as lower:
        fill(lower)
        flush(work)
        yield lower
