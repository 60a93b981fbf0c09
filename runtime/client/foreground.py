"""The foreground of `run` and `exec`: a user's streams and signals for a container's.

Nothing here blocks but poll: a standard output that nobody reads, or a container that does not read its input, must not
keep a signal from being passed on.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import nullcontext
from typing import NamedTuple

from runtime.client import terminal
from runtime.client.output import Output
from runtime.client.signals import PASSED_ON, signals
from runtime.engine import frames
from runtime.engine.start import Shim
from runtime.errors import ShimLost


class Ended(NamedTuple):
    code: int
    trouble: str  # what could not be given back, "" if nothing


def foreground(shim: Shim, *, stdin: bool, wants_terminal: bool) -> Ended:
    """Pass streams and signals until the container's end. Raises ShimLost.

    With `stdin` our standard input is passed on. A container with a terminal that reads from ours has ours in raw
    mode, and follows its size.
    """
    if not wants_terminal:
        return _attach(shim, stdin=stdin, terminal_fd=None)
    screen = 1 if os.isatty(1) else 0
    with terminal.raw(0) if stdin and os.isatty(0) else nullcontext():
        return _attach(shim, stdin=stdin, terminal_fd=screen if os.isatty(screen) else None)


def _attach(shim: Shim, *, stdin: bool, terminal_fd: int | None) -> Ended:
    out, err = Output(1), Output(2)
    reading, ended = stdin, None
    with signals() as caught:
        if terminal_fd is not None:
            _send(shim, frames.pack_window(*terminal.window(terminal_fd)))
        while True:
            while shim.received:
                frame = shim.received.pop(0)
                if frame.kind == frames.OUT:
                    out.add(frame.payload)
                elif frame.kind == frames.ERR:
                    err.add(frame.payload)
                elif frame.kind == frames.IN_OK:
                    reading = True
                elif frame.kind == frames.EXIT:
                    ended = Ended(**frame.json())
            if ended is not None:
                break
            poll = select.poll()
            poll.register(caught, select.POLLIN)
            for output in (out, err):
                if output.queue:
                    poll.register(output.fd, select.POLLOUT)
            # Without a wish POLLHUP is still told: the shim has sent its last, which is no more than a socket holds.
            poll.register(shim.sock, 0 if out.queue or err.queue else select.POLLIN)
            if reading:
                poll.register(0, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            if caught in ready:
                _pass_on(os.read(caught, 512), shim, terminal_fd)
            for output in (out, err):
                if output.fd in ready:
                    output.write()
            if 0 in ready:
                reading = False
                if not _read_input(shim) and terminal_fd is not None:
                    # In raw mode there is no end of input but the terminal's own. The container goes on.
                    raise SystemExit(128 + signal.SIGHUP)
            if shim.sock.fileno() in ready and not shim.receive():
                raise ShimLost("the process that kept the container is gone, and the container with it")
    # From here on a signal is ours: ctrl-C leaves a reader that never reads on.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    for output in (out, err):
        output.drain()
        output.close()
    return ended


def _read_input(shim: Shim) -> bool:
    """Pass on what is there to be read; False at its end."""
    try:
        data = os.read(0, frames.CHUNK)
    except OSError:
        data = b""  # EIO: the terminal is gone, or is another job's
    _send(shim, frames.pack(frames.IN, data) if data else frames.pack(frames.IN_END))
    return bool(data)


def _pass_on(numbers: bytes, shim: Shim, terminal_fd: int | None) -> None:
    for number in numbers:
        if number != signal.SIGWINCH:
            if not _send(shim, frames.pack_number(frames.SIGNAL, number)):
                # The container has ended, and what keeps us is that nobody reads its output: the signal is ours.
                raise SystemExit(128 + number)
        elif terminal_fd is not None:
            _send(shim, frames.pack_window(*terminal.window(terminal_fd)))


def _send(shim: Shim, frame: bytes) -> bool:
    """False when the shim has ended; its last frames may still have to be read."""
    try:
        shim.sock.sendall(frame)
    except OSError:
        return False
    return True

