"""`exec`: another process in a running container. It is this process's child; the shim has no part in it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from runtime.engine import accounts, frames, records, spec, terminal
from runtime.engine.attach import Output, signals
from runtime.engine.containers import Container
from runtime.engine.processes import Process
from runtime.engine.state import Status
from runtime.errors import StateError
from runtime.oci import container as oci


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
        whole = records.read(f"{container.run_directory}/spec.json")
        if whole is None or init.ended(0):
            raise _not_running(container)
        process = configure(container, whole["process"], options, f"/proc/{init.pid}/root")
        with signals() as caught:
            if options.terminal:
                child = oci.exec_process(init.pid, process, spec=whole, stdio=None)
                child.start()
                return _on_terminal(child, caught, stdin=options.stdin)
            with _standard_streams(stdin=options.stdin) as stdio:
                child = oci.exec_process(init.pid, process, spec=whole, stdio=stdio)
            child.start()
            return _wait(child, caught)


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
def _init_of(container: Container) -> Iterator[Process]:
    """The container's first process, certainly: its pid cannot be reused while its shim, which holds the lock, has not
    waited for it; so the record is read again after the descriptor was opened."""
    found = container.state()
    try:
        process = Process(found.pid) if found.status is Status.RUNNING and found.pid else None
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


@contextmanager
def _standard_streams(*, stdin: bool) -> Iterator[oci.Stdio]:
    if stdin:
        yield oci.Stdio(0, 1, 2)
        return
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield oci.Stdio(null, 1, 2)
    finally:
        os.close(null)


def _wait(child: oci.Init, caught: int) -> int:
    poll = select.poll()
    poll.register(caught, select.POLLIN)
    poll.register(child.pidfd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if caught in ready:
            _pass_on(os.read(caught, 512), child)
        if child.pidfd in ready:
            return child.wait()


def _pass_on(numbers: bytes, child: oci.Init) -> None:
    for number in numbers:
        if number != signal.SIGWINCH:
            try:
                signal.pidfd_send_signal(child.pidfd, number)
            except ProcessLookupError:
                pass
        elif child.console is not None and (size := terminal.window(1)) != (0, 0):
            fcntl.ioctl(child.console, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


def _on_terminal(child: oci.Init, caught: int, *, stdin: bool) -> int:
    assert child.console is not None
    os.set_blocking(child.console, False)
    with terminal.raw(0) if stdin and os.isatty(0) else nullcontext():
        return _relay(child, child.console, caught, stdin=stdin)


def _relay(child: oci.Init, console: int, caught: int, *, stdin: bool) -> int:
    """Between our terminal and the process's; as in attach.py nothing but poll waits."""
    out, into = Output(1), Output(console)
    open_console, reading = True, stdin
    while True:
        wanted = {caught: select.POLLIN, child.pidfd: select.POLLIN}
        if open_console and not out.queue:
            wanted[console] = select.POLLIN
        if into.queue:
            wanted[console] = wanted.get(console, 0) | select.POLLOUT
        if out.queue:
            wanted[1] = select.POLLOUT
        if reading and not into.queue:
            wanted[0] = select.POLLIN
        poll = select.poll()
        for fd, events in wanted.items():
            poll.register(fd, events)
        ready = {fd for fd, _ in poll.poll()}
        if caught in ready:
            _pass_on(os.read(caught, 512), child)
        if 1 in ready:
            out.write()
        if 0 in ready:
            data = _read(0)
            reading = bool(data)
            into.add(data or b"")
        if console in ready:
            if into.queue:
                into.write()
            if not out.queue:
                data = _read(console)
                open_console = data != b""
                out.add(data or b"")
        if child.pidfd in ready and not out.queue:
            return _finish(child, console, out)


def _finish(child: oci.Init, console: int, out: Output) -> int:
    code = child.wait()
    while data := _read(console):
        out.add(data)
    out.drain()
    return code


def _read(fd: int) -> bytes | None:
    """What is there now: b"" at the end, None if there is nothing yet."""
    try:
        return os.read(fd, frames.CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""  # EIO: the other end of the terminal is closed
