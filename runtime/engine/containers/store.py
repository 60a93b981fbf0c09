"""The containers of one root: their names and ids, how they begin and end, and the locks that say who is at work.

Locks, outermost first (flock(2): the kernel drops them with the last descriptor, so a killed owner holds nothing):
  <root>/containers/.lock      names and ids: held for the moment of adding or dropping a container
  <root>/containers/ID/lock    one container: held by whoever creates, runs or removes it; a task for its whole life
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress

from drivers.disk import durable, locks, trees
from drivers.errors import DriverError
from runtime.engine import records, state
from runtime.engine.containers import names
from runtime.engine.containers.container import FORMER, Config, Container, flock, removing, up
from runtime.engine.paths import Paths
from runtime.engine.state import Status
from runtime.errors import DamagedRecord, NameInUse, NoSuchContainer

__all__ = ["Config", "Container", "ContainerStore"]

_PATIENCE = locks.PATIENCE  # for the names; nothing is done under their lock that takes time

# What is in a container's directory before its configuration is, and when that is gone: nothing was promised yet, or
# its removal was.
_REMNANTS = frozenset({"lock", "removing", f"config.json{durable.FRESH}", f"state.json{durable.FRESH}"})


class ContainerStore:
    """Containers on disk. Every method may run in several processes at once."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._names = f"{paths.containers}/names"
        paths.keep_private()
        durable.make_directories(self._names)

    def _locked(self) -> AbstractContextManager[int]:
        return locks.locked(f"{self.paths.containers}/.lock", patience=_PATIENCE)

    def add(self, config: Config) -> tuple[Container, int]:
        """Record a new container, durably, as CREATING; its lock is held by the descriptor returned.

        An empty name is replaced by one made up. Raises NameInUse.
        """
        with self._locked():
            config = config._replace(name=self._free_name(config.name))
            container = Container(config, self.paths)
            os.mkdir(container.directory, 0o700)
            try:
                # Locked before the record is there: recovery never takes a container in the making for an orphan.
                lock = flock(f"{container.directory}/lock", fcntl.LOCK_EX, os.O_CREAT)
            except OSError:
                os.rmdir(container.directory)
                raise
            try:
                self._point(config.name, config.id)
            except OSError:
                self._forget(container)
                os.close(lock)
                raise
        try:
            # Not under the lock, for it waits for the disk. From here on the container exists: every other look at it
            # begins with this file, and so does its snapshot.
            path = f"{container.directory}/config.json"
            records.keep(path, config._asdict(), first=(self._names, self.paths.containers))
        except BaseException:
            with suppress(DriverError), self._locked():  # that nobody lets go of the names is not what is to be told
                self._forget(container)
            os.close(lock)
            raise
        return container, lock

    def _forget(self, container: Container) -> None:
        """What add() could not finish. The names' lock is held."""
        self._unpoint(container.id)
        _clear_away(container.directory)

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
        return target if os.path.isdir(f"{self.paths.containers}/{target}") else None

    def _pointers(self) -> dict[str, str]:
        """Ids by the names that lead to them."""
        found = {}
        for name in os.listdir(self._names):
            with suppress(FileNotFoundError):  # removed meanwhile
                found[name] = os.readlink(f"{self._names}/{name}")
        return found

    def _unpoint(self, container_id: str) -> None:
        for name, target in self._pointers().items():
            if target == container_id:
                os.unlink(f"{self._names}/{name}")

    def _point(self, name: str, container_id: str) -> None:
        path = f"{self._names}/{name}"
        try:
            os.symlink(container_id, path)
        except FileExistsError:
            os.unlink(path)
            os.symlink(container_id, path)

    def drop(self, container: Container) -> None:
        """Forget a container: its lock is held by the caller, and its snapshot, network and mounts are gone.

        Unlinking takes no room, and is not synced: the configuration goes last, so whoever dies here, or a cut, leaves
        a container that is being removed, which is durable (Container.begin_removal).
        """
        container.clear()
        with self._locked():
            self._unpoint(container.id)
        for path in (container.log, f"{container.directory}/state.json", f"{container.directory}/config.json"):
            with suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(path)
        _clear_away(container.directory)

    def sweep(self) -> None:
        """Remove what a process left that was killed in `add`, or at the end of `drop`: a directory with a lock and no
        record. Whatever else is in it says that there was a container, which is damaged."""
        remnants = [container_id for container_id in self._ids() if self._is_remnant(container_id)]
        if remnants or not set(self._ids()).issuperset(self._pointers().values()):
            with self._locked():
                for container_id in remnants:
                    self._sweep(container_id)
                for container_id in set(self._pointers().values()).difference(self._ids()):
                    self._unpoint(container_id)

    def _sweep(self, container_id: str) -> None:
        """With the names' lock held nobody is between making a directory and locking it."""
        directory = f"{self.paths.containers}/{container_id}"
        try:
            lock = flock(f"{directory}/lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            _clear_away(directory)
            return
        except BlockingIOError:
            return  # it is being made
        if self._is_remnant(container_id):
            _clear_away(directory)
        os.close(lock)

    def _is_remnant(self, container_id: str) -> bool:
        directory = f"{self.paths.containers}/{container_id}"
        if os.path.exists(f"{directory}/config.json"):
            return False
        try:
            return _REMNANTS.issuperset(os.listdir(directory))
        except FileNotFoundError:
            return True

    def load(self, container_id: str) -> Container:
        """The container with that full id. Raises NoSuchContainer, or DamagedRecord."""
        path = f"{self.paths.containers}/{container_id}/config.json"
        found = records.fields(path, Config, former=FORMER)
        if found is None:
            if self._is_remnant(container_id):
                raise NoSuchContainer(f"No such container: {container_id}")
            found = records.fields(path, Config, former=FORMER)  # it may have been made between the two
        if found is None:
            raise DamagedRecord(f"{path} is missing")
        if found["id"] != container_id:
            raise DamagedRecord(f"{path} is damaged: it is another container's")
        return Container(Config(**found), self.paths)

    def _damaged(self, container_id: str, damage: str) -> Container:
        """What there is to know of a container whose record cannot be read."""
        named = [name for name, target in self._pointers().items() if target == container_id]
        try:
            created = os.stat(f"{self.paths.containers}/{container_id}").st_ctime
        except FileNotFoundError:
            raise NoSuchContainer(f"No such container: {container_id}") from None
        config = Config(
            id=container_id, name=named[0] if named else container_id[: names.SHORT_ID], image="", image_id="",
            driver="", parent="", command=(), created=created, network="", remove=False, terminal=False, stdin=False,
            user="", stop_signal=signal.SIGKILL, spec={},
        )  # fmt: skip
        return Container(config, self.paths, damage)

    def damaged(self) -> Iterator[Container]:
        """The containers whose record cannot be read."""
        for container_id in self._ids():
            try:
                self.load(container_id)
            except NoSuchContainer:
                continue
            except DamagedRecord as error:
                with suppress(NoSuchContainer):
                    yield self._damaged(container_id, str(error))

    def get(self, reference: str, *, damaged: bool = False) -> Container:
        """The container with that id, name, or the beginning of an id, tried in this order (as docker does).

        Raises NoSuchContainer; DamagedRecord with what to do, unless a damaged one is wanted.
        """
        container_id = self._find(reference)
        try:
            return self.load(container_id)
        except DamagedRecord as error:
            found = self._damaged(container_id, str(error))
            if damaged:
                return found
            short = container_id[: names.SHORT_ID]
            raise DamagedRecord(
                f"{error}: restore it, or remove the container with all that it has written (runtime rm -f {short})"
            ) from None

    def _find(self, reference: str) -> str:
        if "/" not in reference and reference not in ("", ".", ".."):
            if len(reference) == 64 and reference in self._ids():
                return reference
            named = self._named(reference)
            if named is not None:
                return named
            matches = [full for full in self._ids() if full.startswith(reference)]
            if len(matches) > 1:
                raise NoSuchContainer(f"Multiple IDs found with provided prefix: {reference}")
            if matches:
                return matches[0]
        raise NoSuchContainer(f"No such container: {reference}")

    def _ids(self) -> list[str]:
        return [name for name in os.listdir(self.paths.containers) if len(name) == 64]

    def __iter__(self) -> Iterator[Container]:
        """All containers whose records can be read, newest first. One that is removed meanwhile is left out."""
        found = []
        for container_id in self._ids():
            with suppress(NoSuchContainer, DamagedRecord):
                found.append(self.load(container_id))
        return iter(sorted(found, key=lambda container: container.config.created, reverse=True))

    def unsettled(self) -> Iterator[Container]:
        """The containers that are in some process's hands, or were when it died. None that is damaged."""
        for container_id in self._ids():
            directory = f"{self.paths.containers}/{container_id}"
            marks = (f"{self.paths.running}/{container_id}", removing(directory), up(directory))
            with suppress(NoSuchContainer, DamagedRecord):
                if not any(map(os.path.lexists, marks)):
                    found = state.rested(directory)
                    # REMOVING: as an earlier version recorded it, whose removal may have failed, and been told to have.
                    if found is not None and found.status in (*state.AT_REST, Status.REMOVING):
                        continue
                yield self.load(container_id)


def _clear_away(directory: str) -> None:
    """Delete what is left of one, as far as that is possible."""
    with suppress(OSError):
        trees.delete_path(directory)
