"""The exit codes of what can go wrong: docker's for a verb that runs a command, 125 or 1 for the others."""

from __future__ import annotations

import pytest

from drivers.errors import Unavailable
from runtime import errors
from runtime.cli.usage import NotPermitted, UsageError, exit_code


@pytest.mark.parametrize(
    ("kind", "of_a_run", "of_others"),
    [
        (UsageError, 125, 125),
        (errors.InvalidValue, 125, 125),
        (NotPermitted, 1, 1),
        (errors.RuntimeFault, 125, 1),
        (errors.NoSuchImage, 125, 1),
        (errors.NameInUse, 125, 1),
        (errors.ContainerError, 125, 1),
        (errors.CommandNotExecutable, 126, 1),
        (errors.CommandNotFound, 127, 1),
        (errors.TaskLost, 137, 1),
        (errors.StateError, 1, 1),
        (errors.DamagedRecord, 1, 1),
        (errors.ImageInUse, 1, 1),
        (errors.ImageError, 1, 1),
        (errors.NoSuchContainer, 1, 1),
        (Unavailable, 125, 1),
        (OSError, 125, 1),
    ],
)
def test_exit_codes(kind: type[Exception], of_a_run: int, of_others: int) -> None:
    assert (exit_code(kind("why"), runs=True), exit_code(kind("why"), runs=False)) == (of_a_run, of_others)
