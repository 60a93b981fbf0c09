"""Copying between a container's streams, its log, the process that started it, and watchers. One thread, one poll.

What is polled follows from the state alone: as long as something waits to be sent to the caller no output is read,
so a slow caller slows the container through its pipe and nothing grows here.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable
from functools import partial

from runtime.engine import frames
from runtime.engine.frames import Frame, Splitter
from runtime.engine.logs import Writer
from runtime.engine.stdio import Ends, resize


class Caller:
    """The process that started the container, if it is still there: what it sent, and what is to be sent to it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock: socket.socket | None = sock
        self.outbox = bytearray()
        self._splitter = Splitter()

    def send(self, frame: bytes) -> None:
        """Queue a frame, and send what can be sent without waiting."""
        if self.sock is not None:
            self.outbox += frame
            self.flush()

    def flush(self) -> None:
        while self.sock is not None and self.outbox:
            try:
                del self.outbox[: self.sock.send(self.outbox)]
            except BlockingIOError:
                return
            except OSError:
                self.hang_up()

    def receive(self) -> list[Frame]:
        if self.sock is None:
            return []
        try:
            found = frames.receive(self.sock, self._splitter)
        except ValueError:
            found = None
        if found is None:
            self.hang_up()
        return found or []

    def finish(self, frame: bytes) -> None:
        """Send everything and the last frame, waiting for a slow reader, and hang up."""
        if self.sock is not None:
            self.sock.setblocking(True)
            try:
                self.sock.sendall(bytes(self.outbox) + frame)
            except OSError:
                pass  # it went away: nobody is left to tell
            self.hang_up()

    def hang_up(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None
            self.outbox.clear()


class Watcher:
    """A later command that waits for the end or follows the log."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._splitter = Splitter()

    def tell(self, frame: bytes) -> None:
        try:
            self.sock.send(frame)
        except OSError:
            pass  # full: it has notices enough to read; gone: the next receive sees it

    def hand(self, fd: int) -> None:
        try:
            socket.send_fds(self.sock, [frames.pack(frames.LOOK)], [fd])
        except OSError:
            pass  # as above

    def receive(self) -> list[Frame] | None:
        try:
            return frames.receive(self.sock, self._splitter)
        except ValueError:
            return None


class Streams:
    """Runs from start to the end of the container's init, `pidfd`. `root` is what watchers get to look at."""

    def __init__(
        self, ends: Ends, log: Writer, caller: Caller, listener: socket.socket, pidfd: int, root: int
    ) -> None:
        self._ends = ends
        self._sources = {
            fd: what
            for fd, what in (
                (ends.console, (frames.OUT, "stdout")),
                (ends.stdout, (frames.OUT, "stdout")),
                (ends.stderr, (frames.ERR, "stderr")),
            )
            if fd >= 0
        }
        self._log = log
        self._caller = caller
        self._listener = listener
        self._pidfd = pidfd
        self._root = root
        self._watchers: list[Watcher] = []
        self._inbox = bytearray()
        self._input_ends = False
        self._ended = False

    def run(self) -> None:
        while not self._ended:
            interests = self._interests()
            poll = select.poll()
            for fd, (events, _) in interests.items():
                poll.register(fd, events)
            for fd, _ in poll.poll():
                interests[fd][1]()
        # Nobody is left to write: what the pipes still hold is all there will ever be.
        for fd in list(self._sources):
            while fd in self._sources and self._copy(fd):
                pass
        self._log.close()
        self._ends.close()

    def close(self) -> None:
        """Let the watchers go, with those that were not accepted yet."""
        for watcher in self._watchers:
            watcher.sock.close()
        self._listener.close()

    def _interests(self) -> dict[int, tuple[int, Callable[[], object]]]:
        wanted: dict[int, tuple[int, Callable[[], object]]] = {
            self._pidfd: (select.POLLIN, self._end),
            self._listener.fileno(): (select.POLLIN, self._accept),
        }
        sock = self._caller.sock
        if sock is not None:
            waiting = select.POLLOUT if self._caller.outbox else 0
            wanted[sock.fileno()] = (select.POLLIN | waiting, self._serve_caller)
        for watcher in self._watchers:
            wanted[watcher.sock.fileno()] = (select.POLLIN, partial(self._serve_watcher, watcher))
        if not self._caller.outbox:
            for fd in self._sources:
                wanted[fd] = (select.POLLIN, partial(self._copy, fd))
        entry = self._ends.input
        if self._inbox and entry >= 0:
            reading = wanted.get(entry, (0,))[0]  # of a terminal, which is read and written by one descriptor
            wanted[entry] = (reading | select.POLLOUT, self._feed_and_copy if reading else self._feed)
        return wanted

    def _end(self) -> None:
        self._ended = True

    def _copy(self, fd: int) -> bool:
        """Pass on what can be read of one source; whether it may have more. At its end it is closed."""
        try:
            data = os.read(fd, frames.CHUNK)
        except BlockingIOError:
            return False
        if not data:
            del self._sources[fd]
            return False
        kind, stream = self._sources[fd]
        if self._log.write(stream, data):
            for watcher in self._watchers:
                watcher.tell(frames.pack(frames.GREW))
        self._caller.send(frames.pack(kind, data))
        return True

    def _feed_and_copy(self) -> None:
        self._feed()
        self._copy(self._ends.console)

    def _accept(self) -> None:
        try:
            self._watchers.append(Watcher(self._listener.accept()[0]))
        except OSError:
            pass  # it went away again

    def _serve_watcher(self, watcher: Watcher) -> None:
        received = watcher.receive()
        if received is None:
            self._watchers.remove(watcher)
            watcher.sock.close()
            return
        for frame in received:
            if frame.kind == frames.SIGNAL:
                self._signal(frame.number())
            elif frame.kind == frames.LOOK:
                watcher.hand(self._root)

    def _serve_caller(self) -> None:
        self._caller.flush()
        for frame in self._caller.receive():
            if frame.kind == frames.IN:
                self._inbox += frame.payload
                self._feed()
            elif frame.kind == frames.IN_END:
                self._input_ends = True
                self._feed()
            elif frame.kind == frames.SIGNAL:
                self._signal(frame.number())
            elif frame.kind == frames.RESIZE:
                self._resize(*frame.window())
        if self._caller.sock is None:
            self._input_ends = True
            self._feed()

    def _feed(self) -> None:
        """Write waiting input; tell the caller when there is room for more; close a pipe whose input has ended."""
        while self._inbox:
            try:
                if self._ends.input < 0:
                    raise BrokenPipeError
                del self._inbox[: os.write(self._ends.input, self._inbox)]
            except BlockingIOError:
                return
            except OSError:
                self._inbox.clear()  # the container has closed its input: it is read and dropped from here on
            if not self._inbox:
                self._caller.send(frames.pack(frames.IN_OK))
        if self._input_ends:
            self._ends.end_input()

    def _signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except OSError:
            pass  # it has ended, or there is no such signal

    def _resize(self, rows: int, columns: int) -> None:
        if self._ends.console >= 0:
            resize(self._ends.console, rows, columns)
