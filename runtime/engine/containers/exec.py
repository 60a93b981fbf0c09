"""`exec`: another process in a running container. Its task starts it, and keeps it."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, NamedTuple

from runtime.engine import frames, waiting
from runtime.engine.containers import accounts, leaving, spec
from runtime.engine.containers.container import Container
from runtime.engine.line import Line
from runtime.engine.state import Status
from runtime.engine.watch import connect
from runtime.errors import ContainerError, StateError, by_name
from runtime.oci import state as oci

_PATIENCE = 60.0  # seconds for a command to be started


class ExecOptions(NamedTuple):
    """Defaults are docker's: what is not given is the container's."""

    command: tuple[str, ...]
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    terminal: bool = False
    stdin: bool = False
    window: tuple[int, int] = (0, 0)  # rows and columns of its terminal


def configure(container: Container, options: ExecOptions) -> dict[str, Any]:
    """The OCI process of the command. StateError when the container does not run, or its file system, in which a user
    is looked up, does not answer. A process in the kernel hears no signal, so one that is to end us ends us there."""
    if container.state().status is not Status.RUNNING:
        raise _not_running(container)
    whole = container.running_spec()
    if whole is None:
        raise _not_running(container)
    changed = dict(whole["process"])
    changed["args"] = list(options.command)
    changed["terminal"] = options.terminal
    changed.pop("consoleSize", None)
    rows, columns = options.window
    if options.terminal and rows:
        changed["consoleSize"] = {"height": rows, "width": columns}
    changed["cwd"] = options.workdir or changed["cwd"]
    env = changed["env"]
    if options.user:
        with leaving.certainly():
            account = _account(container, options.user)
        changed["user"] = {"uid": account.uid, "gid": account.gid, "additionalGids": list(account.groups)}
        env = [entry for entry in env if not entry.startswith("HOME=")] + [f"HOME={account.home}"]
    hostname = container.config.spec["hostname"]
    changed["env"] = spec.environment(env, options.env, hostname=hostname, terminal=options.terminal)
    return changed


def _account(container: Container, user: str) -> accounts.Account:
    known = oci.load(container.run_directory)
    init = known.open()  # while it is open, the pid is the container's
    try:
        lookup = partial(accounts.lookup, user, f"/proc/{known.pid}/root")
        return leaving.within(_PATIENCE, f"the file system of {container.config.name}", lookup)
    finally:
        os.close(init)


def begin(
    container: Container, process: dict[str, Any], *, stdin: bool, answered: waiting.Answered = waiting.answered
) -> tuple[Line, int]:
    """Have the container's task start a process. A line that has its streams, and its number there.

    Raises what it met; StateError if the container has ended, ContainerError when that takes too long or, as
    `answered` may have it, a signal comes meanwhile; there is no process then.
    """
    line = connect(container)
    if line is None:
        raise _not_running(container)
    try:
        line.send(frames.pack_json(frames.EXEC, {"process": process, "stdin": stdin}))
        while not line.received:
            if not answered(line.fileno(), _PATIENCE):
                raise ContainerError(
                    f"the command has not been started within {_PATIENCE:g} seconds: the container's file system does "
                    "not answer"
                )
            if not line.receive():
                raise _not_running(container)
        first = line.received.pop(0)
        if first.kind == frames.FAULT:
            told = first.json()
            raise by_name(told["fault"], told["message"])
    except BaseException:
        line.close()
        raise
    return line, first.process


def _not_running(container: Container) -> StateError:
    return StateError(f"the container {container.config.name} is not running")
