"""`exec`: another process in a running container. The container's shim has no part in it."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from runtime.client import terminal
from runtime.client.output import Output
from runtime.client.signals import held, signals
from runtime.client.waiting import answered
from runtime.engine import accounts, frames, processes, records, spec
from runtime.engine.containers import Container
from runtime.engine.keeper import Kept, Process, keep
from runtime.engine.state import Status
from runtime.engine.stdio import Ends, pipes, resize
from runtime.errors import StateError


class ExecOptions(NamedTuple):
    """Defaults are docker's: what is not given is the container's."""

    command: tuple[str, ...]
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    terminal: bool = False
    stdin: bool = False


def execute(container: Container, options: ExecOptions) -> int:
    """Run the command to its end; its exit code. Raises RuntimeFault or OSError."""
    with _init_of(container) as init:
        whole = records.read(f"{container.run_directory}/config.json")
        if whole is None or init.ended(0):
            raise _not_running(container)
        process = partial(configure, container, whole["process"], options, f"/proc/{init.pid}/root")
        with held(), ExitStack() as opened:
            child, ends = _start(container.run_directory, process, options)
            opened.callback(child.close)
            opened.callback(ends.close)
            caught = opened.enter_context(signals())
            if options.terminal and options.stdin and os.isatty(0):
                opened.enter_context(terminal.raw(0))
            code, outputs = _relay(child, ends, caught, stdin=options.stdin)
        # Signals are ours again: ctrl-C leaves a reader that never reads on.
        for output in outputs:
            output.drain()
            output.close()
        return code


def _start(directory: str, process: Process, options: ExecOptions) -> tuple[Kept, Ends]:
    if options.terminal:
        kept = keep(directory, process, theirs=None, ours=Ends(), answered=answered)
        assert kept.console is not None
        return kept, Ends(console=kept.console)
    theirs, ends = pipes(stdin=options.stdin)
    try:
        return keep(directory, process, theirs=theirs, ours=ends, answered=answered), ends
    except BaseException:
        ends.close()
        raise
    finally:
        for fd in theirs:
            os.close(fd)


def configure(container: Container, process: dict[str, Any], options: ExecOptions, root: str) -> dict[str, Any]:
    """The OCI process of the command; `root` is where the container's root is to be seen."""
    changed = dict(process)
    changed["args"] = list(options.command)
    changed["terminal"] = options.terminal
    changed.pop("consoleSize", None)
    if options.terminal:
        rows, columns = terminal.window(1)
        if rows:
            changed["consoleSize"] = {"height": rows, "width": columns}
    changed["cwd"] = options.workdir or process["cwd"]
    env = process["env"]
    if options.user:
        account = accounts.lookup(options.user, root)
        changed["user"] = {"uid": account.uid, "gid": account.gid, "additionalGids": list(account.groups)}
        env = [entry for entry in env if not entry.startswith("HOME=")] + [f"HOME={account.home}"]
    hostname = container.config.spec["hostname"]
    changed["env"] = spec.environment(env, options.env, hostname=hostname, terminal=options.terminal)
    return changed


@contextmanager
def _init_of(container: Container) -> Iterator[processes.Process]:
    """The container's first process, certainly: its pid cannot be reused while its shim, which holds the lock, has not
    waited for it; so the record is read again after the descriptor was opened."""
    found = container.state()
    try:
        process = processes.Process(found.pid) if found.status is Status.RUNNING and found.pid else None
    except ProcessLookupError:
        process = None
    if process is None:
        raise _not_running(container)
    with process:
        if container.state() != found:
            raise _not_running(container)
        yield process


def _not_running(container: Container) -> StateError:
    return StateError(f"the container {container.config.name} is not running")


def _relay(child: Kept, ends: Ends, caught: int, *, stdin: bool) -> tuple[int, tuple[Output, Output]]:
    """Between our streams and the process's until it ends; as in foreground.py nothing but poll waits.

    The exit code, and what is still to be written.

    Never our own descriptors: through one the process could open its file anew, or leave by its directory
    (CVE-2024-21626), and one that it leaves behind would keep our reader waiting.
    """
    entry = Output(ends.input)
    out, err = Output(1), Output(2)
    sources = {ends.console: out, ends.stdout: out, ends.stderr: err}
    sources.pop(-1)
    reading, ended = stdin, False
    while not ended:
        wanted = {caught: select.POLLIN, child.pidfd: select.POLLIN}
        for output in (out, err):
            if output.queue:
                wanted[output.fd] = select.POLLOUT
        for fd, output in sources.items():
            if not output.queue:
                wanted[fd] = select.POLLIN
        if entry.queue:
            wanted[entry.fd] = wanted.get(entry.fd, 0) | select.POLLOUT
        elif reading:
            wanted[0] = select.POLLIN
        poll = select.poll()
        for fd, events in wanted.items():
            poll.register(fd, events)
        ready = {fd for fd, _ in poll.poll()}
        ended = child.pidfd in ready
        if caught in ready:
            _pass_on(os.read(caught, 512), child)
        for output in (out, err):
            if output.queue and output.fd in ready:
                output.write()
        for fd in sources.keys() & ready:
            _copy(fd, sources)
        if 0 in ready:
            data = _read(0)
            entry.add(data or b"")
            reading = data != b""
        if entry.queue:
            entry.write()  # ours, so it does not block
        elif not reading:
            ends.end_input()
    code = child.wait()
    # What it has left running in the container may write on and on: no more is taken than can be its own.
    for fd in list(sources):
        taken = 0
        while fd in sources and taken < frames.CHUNK and (count := _copy(fd, sources)):
            taken += count
    return code, (out, err)


def _copy(fd: int, sources: dict[int, Output]) -> int:
    """Queue what can be read of a source now; how many bytes. At its end it is no source any more."""
    data = _read(fd)
    if data:
        sources[fd].add(data)
    elif data is not None:
        del sources[fd]
    return len(data or b"")


def _read(fd: int) -> bytes | None:
    """What is there now: b"" at the end, None if there is nothing yet."""
    try:
        return os.read(fd, frames.CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""  # EIO: the terminal is gone, or is another job's


def _pass_on(numbers: bytes, child: Kept) -> None:
    for number in numbers:
        if number != signal.SIGWINCH:
            child.kill(number)
        elif child.console is not None and (size := terminal.window(1)) != (0, 0):
            resize(child.console, *size)
