"""The foreground of `run` and `exec`: a user's streams and signals, connected to a container's process.

Nothing but poll blocks here: a standard output that nobody reads, or a process that does not read its input, must not
keep a signal from being passed on.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import nullcontext
from typing import NamedTuple

from runtime.client import terminal
from runtime.client.output import Output
from runtime.client.signals import PASSED_ON, signals
from runtime.engine import frames
from runtime.engine.line import Line
from runtime.errors import RuntimeFault, TaskLost

_PATIENCE = 5.0  # seconds for a task to read a signal, for which it waits for nothing, but it may be stopped


class Ended(NamedTuple):
    code: int
    trouble: str  # what could not be given back, "" if nothing


def foreground(line: Line, process: int, *, stdin: bool, wants_terminal: bool) -> Ended:
    """Pass streams and signals until the end of that process. Raises TaskLost; RuntimeFault when a signal is not heard.

    With `stdin` our standard input is passed on. A process with a terminal that reads from ours has ours in raw mode,
    and follows its size.
    """
    if not wants_terminal:
        return _Foreground(line, process, None).run(reading=stdin)
    screen = 1 if os.isatty(1) else 0
    with terminal.raw(0) if stdin and os.isatty(0) else nullcontext():
        return _Foreground(line, process, screen if os.isatty(screen) else None).run(reading=stdin)


class _Foreground:
    def __init__(self, line: Line, process: int, terminal_fd: int | None) -> None:
        self._line = line
        self._process = process
        self._terminal_fd = terminal_fd
        self._out, self._err = Output(1), Output(2)
        self._ended: Ended | None = None
        self._unheard: list[int] = []  # signals that were passed on
        self._heard_by = 0.0  # and when, of time.monotonic, the task has to have read them

    def run(self, *, reading: bool) -> Ended:
        with signals() as caught:
            self._tell_size()
            while True:
                reading |= self._take()
                if self._ended is not None:
                    break
                ready = self._poll(caught, reading)
                if caught in ready:
                    self._pass_on(os.read(caught, 512))
                for output in (self._out, self._err):
                    if output.fd in ready:
                        output.write()
                if 0 in ready:
                    reading = False
                    if not self._read_input() and self._terminal_fd is not None:
                        # In raw mode there is no end of input but the terminal's own. The container goes on.
                        raise SystemExit(128 + signal.SIGHUP)
                if self._line.fileno() in ready and not self._line.receive():
                    raise TaskLost("the process that kept the container is gone, and the container with it")
                self._see_whether_heard()
        # From here on a signal is ours: ctrl-C leaves a reader that never reads on.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        for output in (self._out, self._err):
            output.drain()
            output.close()
        return self._ended

    def _take(self) -> bool:
        """Do what has been received; whether the process takes more input now."""
        takes_more = False
        while self._line.received:
            frame = self._line.received.pop(0)
            if frame.process != self._process:
                continue
            if frame.kind == frames.OUT:
                self._out.add(frame.payload)
            elif frame.kind == frames.ERR:
                self._err.add(frame.payload)
            elif frame.kind == frames.IN_OK:
                takes_more = True
            elif frame.kind == frames.EXIT:
                self._ended = Ended(**frame.json())
        return takes_more

    def _poll(self, caught: int, reading: bool) -> set[int]:
        poll = select.poll()
        poll.register(caught, select.POLLIN)
        for output in (self._out, self._err):
            if output.queue:
                poll.register(output.fd, select.POLLOUT)
        # Without a wish POLLHUP is still told: the task has sent its last, which is no more than a socket holds.
        poll.register(self._line.fileno(), 0 if self._out.queue or self._err.queue else select.POLLIN)
        if reading:
            poll.register(0, select.POLLIN)
        patience = max(self._heard_by - time.monotonic(), 0) * 1000 if self._unheard else None
        return {fd for fd, _ in poll.poll(patience)}

    def _read_input(self) -> bool:
        """Pass on what is there to be read; False at its end."""
        try:
            data = os.read(0, frames.CHUNK)
        except OSError:
            data = b""  # EIO: the terminal is gone, or is another job's
        self._line.send(frames.pack(frames.IN if data else frames.IN_END, data, process=self._process))
        return bool(data)

    def _pass_on(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._tell_size()
            elif not self._line.send(frames.pack_number(frames.SIGNAL, number, process=self._process)):
                # The container has ended, and what keeps us is that nobody reads its output: the signal is ours.
                raise SystemExit(128 + number)
            else:
                if not self._unheard:
                    self._heard_by = time.monotonic() + _PATIENCE
                self._unheard.append(number)

    def _see_whether_heard(self) -> None:
        if self._unheard and time.monotonic() >= self._heard_by:
            if self._line.unread():
                raise RuntimeFault(
                    f"the process that keeps the container does not answer, and has not heard signal {self._unheard[0]}"
                )
            self._unheard.clear()

    def _tell_size(self) -> None:
        if self._terminal_fd is not None:
            self._line.send(frames.pack_window(*terminal.window(self._terminal_fd), process=self._process))
