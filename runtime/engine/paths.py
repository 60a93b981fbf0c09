"""Where everything of one installation lies: what must survive a reboot below `root`, the rest below `state`.

    <root>/images/                   the image store
    <root>/drivers/NAME/             a storage driver
    <root>/network/                  leases
    <root>/containers/.lock          names and ids
    <root>/containers/ID/            config.json, state.json, lock, log.json; removing, up (containers/container.py)
    <root>/containers/names/NAME     symbolic link to an ID
    <state>/containers/ID/           an OCI bundle: config.json, rootfs/ (empty); state.json and start.sock
                                     (runtime/oci/state.py); status.json, task.sock

A container's run directory exists exactly as long as a task has it up, or died having it up: below the --state with
which it was started, which need not be the one that is given now.
"""

from __future__ import annotations

import os
from typing import NamedTuple

DEFAULT_ROOT = "/var/lib/fuse-aufs"
DEFAULT_STATE = "/run/fuse-aufs"
DEFAULT_DRIVER = "fuse-aufs"


class Paths(NamedTuple):
    """Absolute, without symbolic links in the last part."""

    root: str
    state: str

    @classmethod
    def of(cls, root: str, state: str) -> Paths:
        return cls(os.path.abspath(root), os.path.abspath(state))

    @property
    def images(self) -> str:
        return f"{self.root}/images"

    @property
    def containers(self) -> str:
        return f"{self.root}/containers"

    @property
    def network(self) -> str:
        return f"{self.root}/network"

    @property
    def running(self) -> str:
        return f"{self.state}/containers"

    def keep_private(self) -> None:
        """Make our directories right below the two, and let nobody but root into them: layers have
        programs with set-id bits, containers' variables are secrets (CVE-2021-41091). The two themselves may be the
        user's, with other things in them.

        Raises OSError; Unavailable for one that is somebody else's or that somebody else could exchange, since what is
        recorded there is believed, and where what was there before is on a disk that is not mounted.
        """
        from drivers.disk import ownership  # late: not every command opens an installation

        if not os.path.isdir(self.containers):
            ownership.check_mounted(self.containers)
        for path in (self.containers, self._drivers, self.images, self.network, self.running):
            ownership.own_directory(path)

    @property
    def _drivers(self) -> str:
        return f"{self.root}/drivers"

    def driver(self, name: str) -> str:
        return f"{self._drivers}/{name}"
