"""The containers of one root: their immutable configuration, names and ids, and the locks that say who is at work.

Locks, outermost first (flock(2): the kernel drops them with the last descriptor, so a killed owner holds nothing):
  <root>/containers/.lock      names and ids: held for the moment of adding or dropping a container
  <root>/containers/ID/lock    one container: held by whoever creates, runs or removes it; a shim for its whole life
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple

from drivers import locks
from runtime.engine import names, records, state
from runtime.engine.paths import Paths
from runtime.engine.state import State, Status
from runtime.errors import NameInUse, NoSuchContainer, StateError

_PATIENCE = locks.PATIENCE  # for the names; nothing is done under their lock that takes time


class Config(NamedTuple):
    """What a container was made from; it never changes. Strings are as the user gave them unless said."""

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
    root: str
    state: str
    stop_signal: int
    spec: dict[str, Any]  # the OCI configuration without what only the root file system tells


class Container(NamedTuple):
    """A container that exists: its configuration and its directories."""

    config: Config

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def directory(self) -> str:
        return f"{self.config.root}/containers/{self.config.id}"

    @property
    def run_directory(self) -> str:
        return f"{self.config.state}/containers/{self.config.id}"

    @property
    def rootfs(self) -> str:
        return f"{self.run_directory}/rootfs"

    @property
    def log(self) -> str:
        return f"{self.directory}/log.json"

    def exists(self) -> bool:
        return os.path.exists(f"{self.directory}/config.json")

    def state(self) -> State:
        """Raises NoSuchContainer when it was removed meanwhile.

        Where a power cut took the record, what a shim left tells whether the container has run.
        """
        found = state.load(self.run_directory, self.directory)
        if found is None:
            if not self.exists():
                raise NoSuchContainer(f"No such container: {self.config.name}")
            found = State(Status.RUNNING if os.path.exists(self.log) else Status.CREATING)
        return found

    def rest(self, final: State) -> None:
        """Record a state that no process keeps up, and drop the run directory. The lock must be held."""
        state.save(self.directory, final)
        self.clear()

    def clear(self) -> None:
        """Remove the run directory; never anything below a root file system that should still be mounted there."""
        try:
            names = os.listdir(self.run_directory)
        except FileNotFoundError:
            return
        with suppress(OSError):  # busy: it stays, and with it the sign that there is something to give back
            if "state.json" in names:
                os.unlink(f"{self.run_directory}/state.json")  # first: it goes before the one in `directory`
            if "rootfs" in names:
                os.rmdir(self.rootfs)
            shutil.rmtree(self.run_directory)

    def lock(self, patience: float = 0) -> int | None:
        """The container's lock as a descriptor to close, or None when after `patience` seconds a live process still
        has it."""
        deadline = time.monotonic() + patience
        while True:
            try:
                fd = _flock(f"{self.directory}/lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except FileNotFoundError:
                raise NoSuchContainer(f"No such container: {self.config.name}") from None
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.01)  # flock(2) knows no time limit
        if not self.exists():
            # The holder before us removed the container between our open and our flock.
            os.close(fd)
            raise NoSuchContainer(f"No such container: {self.config.name}")
        return fd


def _flock(path: str, how: int, flags: int = 0) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(fd, how)
    except OSError:
        os.close(fd)
        raise
    return fd


class ContainerStore:
    """Containers on disk. Every method may run in several processes at once."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._names = f"{paths.containers}/names"
        os.makedirs(self._names, mode=0o710, exist_ok=True)
        os.makedirs(paths.running, mode=0o710, exist_ok=True)

    def _locked(self) -> AbstractContextManager[int]:
        return locks.locked(f"{self.paths.containers}/.lock", patience=_PATIENCE)

    def add(self, config: Config) -> tuple[Container, int]:
        """Record a new container as CREATING; its lock is held by the descriptor returned.

        An empty name is replaced by one made up. Raises NameInUse.
        """
        with self._locked():
            config = config._replace(name=self._free_name(config.name))
            container = Container(config)
            os.mkdir(container.directory, 0o710)
            try:
                # Locked before the record is there: recovery never takes a container in the making for an orphan.
                lock = _flock(f"{container.directory}/lock", fcntl.LOCK_EX, os.O_CREAT)
                state.save(container.directory, State(Status.CREATING))
                # From here on it exists: every other look at it begins with this file.
                records.write(f"{container.directory}/config.json", config._asdict())
                self._point(config.name, config.id)
            except OSError:
                shutil.rmtree(container.directory, ignore_errors=True)
                raise
        return container, lock

    def _free_name(self, wish: str) -> str:
        if wish:
            holder = self._named(wish)
            if holder is not None:
                raise NameInUse(
                    f'Conflict. The container name "{wish}" is already in use by container '
                    f"{holder[: names.SHORT_ID]}: remove that container or choose another name"
                )
            return wish
        name = names.new_name()
        number = 1
        while self._named(name) is not None:
            name = f"{names.new_name()}{number}"
            number += 1
        return name

    def _named(self, name: str) -> str | None:
        """The id of the container with that name. A link left by a crash in `drop` names a container that is gone."""
        try:
            target = os.readlink(f"{self._names}/{name}")
        except OSError:
            return None
        return target if self._exists(target) else None

    def _point(self, name: str, container_id: str) -> None:
        path = f"{self._names}/{name}"
        try:
            os.symlink(container_id, path)
        except FileExistsError:
            os.unlink(path)
            os.symlink(container_id, path)

    def drop(self, container: Container) -> None:
        """Forget a container: its lock is held by the caller, and its snapshot, network and mounts are gone."""
        with self._locked():
            container.clear()
            if os.path.exists(container.run_directory):
                raise StateError(f"{container.run_directory} cannot be removed: something is mounted below it")
            if self._named(container.config.name) == container.id:
                os.unlink(f"{self._names}/{container.config.name}")
            os.unlink(f"{container.directory}/config.json")
            shutil.rmtree(container.directory, ignore_errors=True)

    def sweep(self) -> None:
        """Remove the directories that a process killed in `add` or `drop`, or a power cut, left without
        a configuration."""
        if any(not self._exists(container_id) for container_id in self._ids()):
            with self._locked():
                for container_id in self._ids():
                    if not self._exists(container_id):
                        shutil.rmtree(f"{self.paths.containers}/{container_id}", ignore_errors=True)

    def _exists(self, container_id: str) -> bool:
        """An empty configuration is what a power cut leaves of a container that was being made."""
        try:
            return os.stat(f"{self.paths.containers}/{container_id}/config.json").st_size > 0
        except FileNotFoundError:
            return False

    def load(self, container_id: str) -> Container:
        """The container with that full id, or NoSuchContainer."""
        record = records.read(f"{self.paths.containers}/{container_id}/config.json")
        if record is None:
            raise NoSuchContainer(f"No such container: {container_id}")
        return Container(Config(**{**record, "command": tuple(record["command"])}))

    def get(self, reference: str) -> Container:
        """The container with that id, name, or the beginning of an id, tried in this order (as docker does)."""
        if "/" not in reference and reference not in ("", ".", ".."):
            if len(reference) == 64 and reference in self._ids():
                return self.load(reference)
            named = self._named(reference)
            if named is not None:
                return self.load(named)
            matches = [full for full in self._ids() if full.startswith(reference)]
            if len(matches) > 1:
                raise NoSuchContainer(f"Multiple IDs found with provided prefix: {reference}")
            if matches:
                return self.load(matches[0])
        raise NoSuchContainer(f"No such container: {reference}")

    def _ids(self) -> list[str]:
        return [name for name in os.listdir(self.paths.containers) if len(name) == 64]

    def __iter__(self) -> Iterator[Container]:
        """All containers, newest first. One that is removed meanwhile is left out."""
        found = []
        for container_id in self._ids():
            try:
                found.append(self.load(container_id))
            except NoSuchContainer:
                continue
        return iter(sorted(found, key=lambda container: container.config.created, reverse=True))

    def unsettled(self) -> Iterator[Container]:
        """The containers that are in some process's hands, or were when it died."""
        for container_id in self._ids():
            if not os.path.exists(f"{self.paths.running}/{container_id}"):
                found = state.load(f"{self.paths.containers}/{container_id}")
                if found is not None and found.status is Status.EXITED:
                    continue
            try:
                yield self.load(container_id)
            except NoSuchContainer:
                continue
