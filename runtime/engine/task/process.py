"""One process of the container, with its streams and the clients that have them.

What is polled follows from the state alone: as long as something waits to be sent to whoever had the process started,
none of its output is read, so a slow client slows its process through the pipe and nothing grows here.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from runtime.engine import frames
from runtime.engine.frames import Frame
from runtime.engine.stdio import Ends
from runtime.engine.task.connection import Connection
from runtime.oci.process import Init

Interests = dict[int, tuple[int, Callable[[], object]]]  # descriptors: events of poll(2), and what they are for


class Process:
    """`number` is what frames call it, 0 the first; `owner` had it started, None once that has hung up."""

    def __init__(
        self, number: int, init: Init, ends: Ends, owner: Connection, log: Callable[[str, bytes], object] | None = None
    ) -> None:
        self.number = number
        self.init = init
        self.owner: Connection | None = owner
        self._ends = ends
        self._log = log
        self._sources = {
            fd: what
            for fd, what in (
                (ends.console, (frames.OUT, "stdout")),
                (ends.stdout, (frames.OUT, "stdout")),
                (ends.stderr, (frames.ERR, "stderr")),
            )
            if fd >= 0
        }
        self._attached: list[Connection] = []
        self._waiting: list[Connection] = []
        self._inbox = bytearray()
        self._feeders: list[Connection] = []  # whose input is in the inbox
        self._input_ends = False

    def interests(self) -> Interests:
        wanted: Interests = {}
        if self.owner is None or not self.owner.outbox:
            for fd in self._sources:
                wanted[fd] = (select.POLLIN, partial(self._copy, fd))
        entry = self._ends.input
        if self._inbox and entry >= 0:
            reading = wanted.get(entry, (0,))[0]  # of a terminal, which is read and written by one descriptor
            wanted[entry] = (reading | select.POLLOUT, self._feed_and_copy if reading else self._feed)
        return wanted

    # -- Clients --

    def attach(self, client: Connection) -> None:
        self._attached.append(client)

    def wait_for(self, client: Connection) -> None:
        self._waiting.append(client)

    def clients(self) -> list[Connection]:
        """Those that are told of its end."""
        owner = [] if self.owner is None else [self.owner]
        return list(dict.fromkeys([*owner, *self._attached, *self._waiting]))

    def gone(self, client: Connection) -> None:
        """A client has hung up. An added process is its owner's alone: with it go both ends of its streams, and so
        does its terminal."""
        for those in (self._attached, self._waiting, self._feeders):
            if client in those:
                those.remove(client)
        if client is self.owner:
            self.owner = None
            self._input_ends = True
            self._feed()
            if self.number:
                self.close()

    def take(self, client: Connection, frame: Frame) -> None:
        """What a client has sent for it."""
        if frame.kind == frames.IN:
            self._inbox += frame.payload
            self._feeders.append(client)
            self._feed()
        elif frame.kind == frames.IN_END:
            self._input_ends = True
            self._feed()
        elif frame.kind == frames.SIGNAL:
            with suppress(OSError):  # it has ended, or there is no such signal
                self.init.kill(frame.number())
        elif frame.kind == frames.RESIZE:
            self._ends.resize(*frame.window())

    # -- Streams --

    def _copy(self, fd: int) -> int:
        """Pass on what can be read of one source; how many bytes. At its end it is one no longer."""
        if fd not in self._sources:
            return 0  # closed since it was polled, or at its end
        try:
            data = os.read(fd, frames.CHUNK)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        kind, stream = self._sources[fd]
        if not data:
            del self._sources[fd]
            return 0
        if self._log is not None:
            self._log(stream, data)
        frame = frames.pack(kind, data, process=self.number)
        if self.owner is not None:
            self.owner.send(frame)
        for client in self._attached:
            client.offer(frame)
        return len(data)

    def _feed_and_copy(self) -> None:
        self._feed()
        self._copy(self._ends.console)

    def _feed(self) -> None:
        """Write waiting input; tell its client when there is room for more; close a pipe whose input has ended."""
        while self._inbox:
            try:
                if self._ends.input < 0:
                    raise BrokenPipeError
                del self._inbox[: os.write(self._ends.input, self._inbox)]
            except BlockingIOError:
                return
            except OSError:
                self._inbox.clear()  # the process has closed its input: it is read and dropped from here on
        for client in self._feeders:
            client.send(frames.pack(frames.IN_OK, process=self.number))
        self._feeders.clear()
        if self._input_ends:
            self._ends.end_input()

    def finish(self) -> None:
        """It has ended: pass on what is left of its output, and let go of it.

        That is no more than its streams hold. Others may have their ends too, and write on and on: what it has left
        running, or been given them by it.
        """
        for fd in list(self._sources):
            left = self._ends.holds(fd)
            while left > 0 and (count := self._copy(fd)):
                left -= count
        self.close()

    def close(self) -> None:
        self._sources.clear()
        self._ends.close()

    def exited(self, code: int, trouble: str = "") -> bytes:
        """The frame that tells of its end."""
        return frames.pack_json(frames.EXIT, {"code": code, "trouble": trouble}, process=self.number)
