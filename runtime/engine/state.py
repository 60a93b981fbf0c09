"""What a container is doing: its status, the legal ways from one to the next, and the record of it.

        CREATING ──▶ CREATED ──▶ RUNNING ──▶ EXITED
            │           │          │           │
            └───────────┴──────────┴───────────┴──▶ REMOVING

Only an EXITED container is nobody's. The others belong to a process that holds the container's lock (containers.py):
such a record with a free lock was left by a process that died, and recover.py brings it to EXITED or nothing.
"""

from __future__ import annotations

import enum
import os
from typing import NamedTuple

from runtime.engine import records
from runtime.errors import StateError


class Status(enum.Enum):
    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    REMOVING = "removing"


_NEXT = {
    Status.CREATING: {Status.CREATED, Status.REMOVING},
    Status.CREATED: {Status.RUNNING, Status.REMOVING},
    Status.RUNNING: {Status.EXITED, Status.REMOVING},
    Status.EXITED: {Status.REMOVING},
    Status.REMOVING: {Status.REMOVING},
}


class State(NamedTuple):
    """One moment of a container. Times are seconds since the epoch, 0.0 for never."""

    status: Status
    pid: int = 0  # of the container's init as the host sees it; 0 when not running
    shim_pid: int = 0
    started: float = 0.0
    finished: float = 0.0
    exit_code: int = 0
    error: str = ""  # how its shim was lost, or what could not be given back
    address: str = ""  # on its network, ADDRESS/PREFIX

    def to(self, status: Status, **changes: object) -> State:
        """This state moved on to `status`. Raises StateError for a way that is not in the drawing."""
        if status not in _NEXT[self.status]:
            raise StateError(f"a container that is {self.status.value} cannot become {status.value}")
        return self._replace(status=status, **changes)  # type: ignore[arg-type]


def save(directory: str, state: State) -> None:
    records.write(os.path.join(directory, "state.json"), {**state._asdict(), "status": state.status.value})


def load(*directories: str) -> State | None:
    """The state recorded in the first of `directories` that has one. A damaged record counts as none."""
    for directory in directories:
        record = records.read(os.path.join(directory, "state.json"))
        try:
            if record is not None:
                return State(**{**record, "status": Status(record["status"])})
        except (KeyError, TypeError, ValueError):
            continue
    return None
