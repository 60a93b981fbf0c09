"""What a container is doing: its status, the legal ways from one to the next, and the record of it.

                                   ┌───────────┐
                                   ▼           │
        CREATING ──▶ CREATED ──▶ RUNNING ──▶ EXITED      DEAD
            │           │          │           │           │
            └───────────┴──────────┴───────────┴───────────┴──▶ REMOVING

CREATED and EXITED are where a container rests, and is nobody's: whoever starts it takes it from there. A CREATED one
has never run; one that could not be started stays what it was, with why in `error`. The other states belong to a
process that holds the container's lock (containers/store.py): such a record with a free lock was left by a process
that died, and containers/recovery.py brings it to rest or to nothing. A DEAD one is never recorded: it is one whose
record is damaged, and stays until somebody asks for its removal.

Two records make a state. The one below --root says what must be known after the machine went down: nothing before the
container rests or has its first instruction, RUNNING from there on, CREATED or EXITED at rest; of a container that
removes itself, nothing once it runs. The one below --state says the rest, and wins as long as it is there. REMOVING is
a file of its own beside the former.
"""

from __future__ import annotations

import enum
import os
from typing import NamedTuple

from runtime.engine import records
from runtime.errors import DamagedRecord, StateError

# The first lies beside oci's state.json.
RUNNING_RECORD, RESTING_RECORD = "status.json", "state.json"

# What State had besides, in 0.2.0 and before: the pid of the task, under another name.
_FORMER = ("shim_pid",)


class Status(enum.Enum):
    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    REMOVING = "removing"
    DEAD = "dead"


_NEXT = {
    Status.CREATING: {Status.CREATED, Status.REMOVING},
    Status.CREATED: {Status.RUNNING, Status.REMOVING},
    Status.RUNNING: {Status.EXITED, Status.REMOVING},
    Status.EXITED: {Status.RUNNING, Status.REMOVING},
    Status.REMOVING: {Status.REMOVING},
    Status.DEAD: {Status.REMOVING},
}


AT_REST = frozenset({Status.CREATED, Status.EXITED})


class State(NamedTuple):
    """One moment of a container. Times are seconds since the epoch, 0.0 for never."""

    status: Status
    pid: int = 0  # of the container's init as the host sees it; 0 when not running
    task_pid: int = 0
    started: float = 0.0
    finished: float = 0.0
    exit_code: int = 0  # of one that could not be started 126, 127 or 128, as docker has it
    error: str = ""  # why it could not be started, how its task was lost, or what could not be given back
    address: str = ""  # on its network, ADDRESS/PREFIX
    gateway: str = ""
    mac: str = ""
    places: tuple[str, ...] = ()  # where what was mounted is, by links of its image, and not where it was said to be
    oom_killed: bool = False  # the kernel has killed a process of it for its memory limit

    def to(self, status: Status, **changes: object) -> State:
        """This state moved on to `status`. Raises StateError for a way that is not in the drawing."""
        if status not in _NEXT[self.status]:
            raise StateError(f"a container that is {self.status.value} cannot become {status.value}")
        return self._replace(status=status, **changes)  # type: ignore[arg-type]


def save(directory: str, state: State) -> None:
    """Record it in a directory below --state."""
    records.write(os.path.join(directory, RUNNING_RECORD), _record(state))


def keep(directory: str, state: State) -> None:
    """Record it in a directory below --root, durably."""
    records.keep(os.path.join(directory, RESTING_RECORD), _record(state))


def _record(state: State) -> dict[str, object]:
    return {**state._asdict(), "status": state.status.value}


def load(running: str, resting: str) -> State | None:
    """The state recorded below --state, in `running`, or else below --root, in `resting`; None where there is none.

    Raises DamagedRecord where there are only damaged ones.
    """
    return _first_whole(os.path.join(running, RUNNING_RECORD), os.path.join(resting, RESTING_RECORD))


def rested(resting: str) -> State | None:
    """The state recorded below --root; None where there is none. Raises DamagedRecord."""
    return _first_whole(os.path.join(resting, RESTING_RECORD))


def _first_whole(*paths: str) -> State | None:
    damaged: DamagedRecord | None = None
    for path in paths:
        try:
            found = records.fields(path, State, former=_FORMER)
        except DamagedRecord as error:
            damaged = damaged or error
            continue
        if found is not None:
            return State(**found)
    if damaged is not None:
        raise damaged
    return None
