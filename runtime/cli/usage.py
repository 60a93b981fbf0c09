"""What the command line itself has to say against a command, and the exit codes of all that can go wrong."""

from __future__ import annotations

from runtime import errors
from runtime.errors import InvalidValue, RuntimeFault


class UsageError(InvalidValue):
    """An option or argument that cannot be meant."""


class NotPermitted(RuntimeFault):
    """The runtime needs privileges that this process does not have."""


USAGE = 125

# Of `run` and `exec`, docker's (docker run(1), "Exit Status"): 125 for a fault of ours, and what a shell gives for a
# command that cannot be executed or found. What is about a container, an image or a record that is there gives 1, as
# everything does with the other verbs.
_OF_A_RUN: dict[type[RuntimeFault], int] = {
    RuntimeFault: 125,
    NotPermitted: 1,
    errors.StateError: 1,
    errors.DamagedRecord: 1,
    errors.ImageInUse: 1,
    errors.ImageError: 1,
    errors.NoSuchContainer: 1,
    errors.CommandNotExecutable: 126,
    errors.CommandNotFound: 127,
    errors.TaskLost: 137,
}


def exit_code(error: Exception, *, runs: bool) -> int:
    """Of a verb that `runs` a command, whose own exit code it gives otherwise, or of one that does not."""
    if isinstance(error, InvalidValue):
        return USAGE
    if not runs:
        return 1
    return next((_OF_A_RUN[kind] for kind in type(error).__mro__ if kind in _OF_A_RUN), _OF_A_RUN[RuntimeFault])
