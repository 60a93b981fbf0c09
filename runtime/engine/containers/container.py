"""One container: its immutable configuration, where it is kept, what it is doing, and the lock that says who is at
work on it.

    <root>/containers/ID/    config.json, state.json, log.json, lock, removing (an empty file, while it is removed),
                             up (a link to its run directory, while there is one)
    <state>/containers/ID/   its run directory, what goes with the machine: see engine/paths.py
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from drivers.disk import durable, locks, trees
from drivers.errors import TimedOut
from runtime.engine import records, state
from runtime.engine.paths import Paths
from runtime.engine.state import State, Status
from runtime.errors import DamagedRecord, NoSuchContainer, StateError


class Config(NamedTuple):
    """What a container was made from; it never changes. Strings are as the user gave them unless said.

    No path of the installation's is in it, so that what was moved elsewhere works there.
    """

    id: str
    name: str
    image: str
    image_id: str
    driver: str
    parent: str  # the committed snapshot of the image; the container's own snapshot has the container's id
    command: tuple[str, ...]  # entrypoint and arguments together, for `ps`
    created: float
    network: str
    remove: bool  # when it ends
    terminal: bool
    stdin: bool
    user: str  # USER[:GROUP] by name or number; looked up in the root file system at start
    stop_signal: int
    spec: dict[str, Any]  # the OCI configuration without what only place and root file system tell
    entrypoint: tuple[str, ...] = ()  # what `command` begins with
    quota: int = 0  # bytes that it may write; 0 for no limit
    declared: dict[str, Any] = {}  # what its image says of itself and nothing here acts upon: labels, ports, volumes


_OWNER = "owner.json"  # in a run directory: device and inode of the lock of the container that has it up

# What Config had besides, in 0.2.0 and before: where the installation was then.
FORMER = ("root", "state")


class Container(NamedTuple):
    """A container that exists: its configuration and its directories.

    With `damage`, a sentence, its record cannot be read: the configuration has nothing but id, name and place then.
    """

    config: Config
    paths: Paths
    damage: str = ""

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def directory(self) -> str:
        return f"{self.paths.containers}/{self.config.id}"

    @property
    def run_directory(self) -> str:
        """Of one that is up, where it was started, whatever --state whoever asks has given; of another one a path where
        nothing is."""
        usual = f"{self.paths.running}/{self.config.id}"
        try:
            started = os.readlink(self._up)
        except OSError:
            started = usual
        # After the machine went down, and where the installation was moved since, the link leads nowhere.
        for place in (started, usual):
            if self._is_own(place):
                return place
        return f"{self.directory}/down" if os.path.lexists(usual) else usual

    def _is_own(self, place: str) -> bool:
        """Whether that is this container's run directory. A copy of the installation, a backup for one, has containers
        of the same ids, and links to what those of the original have up: the file of the lock is another."""
        try:
            said = records.read(f"{place}/{_OWNER}")
            return os.path.isdir(place) and (said is None or said == self._identity())
        except (DamagedRecord, OSError):
            return False

    def _identity(self) -> list[int]:
        lock = os.stat(f"{self.directory}/lock")
        return [lock.st_dev, lock.st_ino]

    @property
    def _up(self) -> str:
        return up(self.directory)

    def make_run_directory(self) -> None:
        """From here on it is up, in the eyes of all others. FileExistsError; the lock must be held."""
        place = f"{self.paths.running}/{self.config.id}"
        os.makedirs(place, mode=0o700)
        records.write(f"{place}/{_OWNER}", self._identity())
        with suppress(FileNotFoundError):
            os.unlink(self._up)
        os.symlink(place, self._up)

    @property
    def rootfs(self) -> str:
        return f"{self.run_directory}/rootfs"

    @property
    def log(self) -> str:
        return f"{self.directory}/log.json"

    def placed(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """An OCI configuration of the container's, with the path of its root where the installation is now."""
        return {**spec, "root": {**spec["root"], "path": self.rootfs}}

    def running_spec(self) -> dict[str, Any] | None:
        """The OCI configuration as it is run; None when the container is not up. Raises DamagedRecord."""
        spec: dict[str, Any] | None = records.read(f"{self.run_directory}/config.json")
        return spec

    def record_running_spec(self, spec: Mapping[str, Any]) -> None:
        """With it the run directory is a bundle."""
        records.write(f"{self.run_directory}/config.json", spec)

    def exists(self) -> bool:
        return os.path.exists(f"{self.directory}/config.json") or (bool(self.damage) and os.path.exists(self.directory))

    def state(self) -> State:
        """Raises NoSuchContainer when it was removed meanwhile."""
        try:
            found = state.load(self.run_directory, self.directory)
        except DamagedRecord as error:
            found = State(Status.DEAD, error=str(error))
        if found is None:
            if not self.exists():
                raise NoSuchContainer(f"No such container: {self.config.name}")
            # A container that has run has a record, which somebody has lost when there is a log without one.
            found = State(Status.RUNNING if os.path.exists(self.log) else Status.CREATING)
        if self.damage:
            found = State(Status.DEAD, error=self.damage)
        return found.to(Status.REMOVING) if os.path.exists(removing(self.directory)) else found

    def rest(self, final: State) -> None:
        """Record a state that no process keeps up, and drop the run directory. The lock must be held."""
        try:
            state.keep(self.directory, final)
        except OSError:
            # A full disk: known until the machine goes down, and recovery tries again.
            with suppress(OSError):
                os.makedirs(self.run_directory, 0o700, exist_ok=True)
                state.save(self.run_directory, final)
            raise
        self.tidy()

    def begin_removal(self) -> None:
        """From here on it is REMOVING, whoever dies. An empty file takes no room; where there is none even for its
        name, to remove the container goes before."""
        with suppress(OSError):
            os.close(os.open(removing(self.directory), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            if not self.config.remove:  # that one is removed by whoever finds it, in any case
                durable.sync_directory(self.directory)

    def give_removal_up(self) -> None:
        """It failed, and the container is what it was."""
        with suppress(OSError):  # why it failed is what is to be told
            os.unlink(removing(self.directory))
            durable.sync_directory(self.directory)

    def clear(self) -> None:
        """Remove the run directory; never anything below a root file system that should still be mounted there.

        StateError when something is.
        """
        self.tidy()
        if os.path.exists(self.run_directory):
            raise StateError(f"{self.run_directory} cannot be removed: something is mounted below it")

    def tidy(self) -> None:
        """clear() as far as that is possible."""
        place = self.run_directory
        with suppress(OSError):  # busy: it stays, and with it the sign that there is something to give back
            names = os.listdir(place) if os.path.exists(place) else None
            if names is not None:
                if state.RUNNING_RECORD in names:  # first: it goes before the one in `directory`
                    os.unlink(f"{place}/{state.RUNNING_RECORD}")
                if "rootfs" in names:
                    os.rmdir(f"{place}/rootfs")
                trees.delete_path(place)
            os.unlink(self._up)

    def lock(self, patience: float = 0) -> int | None:
        """The container's lock as a descriptor to close, or None when after `patience` seconds a live process still
        has it."""
        made = os.O_CREAT if self.damage else 0  # of a damaged one the file may be what is lost
        try:
            fd = os.open(f"{self.directory}/lock", os.O_RDWR | os.O_CLOEXEC | made, 0o600)
        except FileNotFoundError:
            raise NoSuchContainer(f"No such container: {self.config.name}") from None
        try:
            locks.lock(fd, f"the container {self.config.name}", patience=patience)
        except TimedOut:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        if not self.exists():
            # The holder before us removed the container between our open and our flock.
            os.close(fd)
            raise NoSuchContainer(f"No such container: {self.config.name}")
        return fd


def flock(path: str, how: int, flags: int = 0) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(fd, how)
    except OSError:
        os.close(fd)
        raise
    return fd


def removing(directory: str) -> str:
    """A file in a container's directory that is there while the container is being removed."""
    return f"{directory}/removing"


def up(directory: str) -> str:
    """A link in a container's directory that leads to its run directory, while there is one."""
    return f"{directory}/up"
