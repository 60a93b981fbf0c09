"""The task's one loop: its clients, the container's processes, and those that are on their way into it. One thread,
one poll.

Every child is collected here as soon as it has ended, whatever its client does: a container ends only when every
process of its pid namespace has been collected, even one whose parent is outside (zap_pid_ns_processes,
kernel/pid_namespace.c).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from functools import partial

from runtime.engine import frames
from runtime.engine.containers.logs import Writer
from runtime.engine.frames import Frame
from runtime.engine.stdio import Ends
from runtime.engine.task.connection import Connection, finish
from runtime.engine.task.joining import Joining
from runtime.engine.task.process import Interests, Process
from runtime.errors import StateError
from runtime.oci import parent
from runtime.oci.process import Init

# What accept(2) says of a client that there is no room for, and for how many seconds it is left waiting then.
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 0.1


class Loop:
    """Runs from start to the end of the container's first process. Its root is what clients get to look at."""

    def __init__(
        self, directory: str, init: Init, ends: Ends, log: Writer, caller: Connection, listener: socket.socket
    ) -> None:
        self._directory = directory
        self._log = log
        self._listener = listener
        self._first = Process(0, init, ends, caller, self._write_log)
        self._processes = {0: self._first}
        self._last = 0
        self._connections = [caller]
        self._accepts_from = 0.0  # a time of time.monotonic
        self._followers: list[Connection] = []
        self._joining: list[Joining] = []
        self._unreaped: dict[int, int] = {}  # pids by pidfd, of processes that nobody asks for
        self._unwanted: list[Init] = []  # the same, of those that had come further
        self._traced: set[int] = set()  # pidfds of those that have ended, and cannot be collected yet
        self._may_have_strays = False  # children that none of these is (collect_strays)
        self._news, self._told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # of children
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)

    def run(self) -> None:
        """Return when the first process has ended, and all of its output is passed on and logged."""
        over = False
        while not over:
            interests = self._interests()
            poll = select.poll()
            for fd, (events, _) in interests.items():
                poll.register(fd, events)
            pause = self._accepts_from - time.monotonic()
            for fd, _ in poll.poll(pause * 1000 if pause > 0 else None):
                if fd == self._first.init.pidfd:
                    over = True
                else:
                    interests[fd][1]()
            if self._may_have_strays and all(joining.init is not None for joining in self._joining):
                self._may_have_strays = False
                parent.collect_strays(self._known())
        self._first.finish()
        self._log.close()
        for joining in list(self._joining):
            self._give_up(joining)

    def close(self, code: int, trouble: str) -> None:
        """Everything is given back. Tell those that want to know; the others, and those not accepted yet, get
        the end of file."""
        for pidfd, pid in self._unreaped.items():
            os.waitpid(pid, 0)  # its tracer, if it has one, was in the container
            os.close(pidfd)
        for init in self._unwanted:
            init.wait()
        told = self._first.clients()
        for client in told:
            client.send(self._first.exited(code, trouble))
        self._listener.close()
        for client in self._connections:
            if client not in told and not client.ending:  # one that is has the last of another process still to read
                client.hang_up()
        finish(self._connections)

    def _interests(self) -> Interests:
        while gone := [one for one in self._connections if one.sock is None]:
            for connection in gone:  # of which others may hear, and turn out to have gone as well
                self._gone(connection)
        wanted: Interests = {self._news: (select.POLLIN, self._hear_of_children)}
        if self._accepts_from <= time.monotonic():
            wanted[self._listener.fileno()] = (select.POLLIN, self._accept)
        for connection in self._connections:
            assert connection.sock is not None
            waiting = select.POLLOUT if connection.is_waiting else 0
            reading = 0 if connection.ending else select.POLLIN
            wanted[connection.sock.fileno()] = (reading | waiting, partial(self._serve, connection))
        for process in self._processes.values():
            wanted[process.init.pidfd] = (select.POLLIN, partial(self._end, process))
            wanted |= process.interests()
        for joining in self._joining:
            wanted[joining.fileno()] = (select.POLLIN, partial(self._advance, joining))
        for pidfd in self._unreaped:
            wanted[pidfd] = (select.POLLIN, partial(self._reap, pidfd))
        for init in self._unwanted:
            wanted[init.pidfd] = (select.POLLIN, partial(self._collect, init))
        for pidfd in self._traced:
            wanted.pop(pidfd, None)
        return wanted

    # -- Clients --

    def _accept(self) -> None:
        try:
            self._connections.append(Connection(self._listener.accept()[0]))
        except OSError as error:  # else it went away again
            if error.errno in _NO_ROOM:
                self._accepts_from = time.monotonic() + _PAUSE

    def _serve(self, client: Connection) -> None:
        client.flush()
        for frame in client.receive():
            try:
                self._take(client, frame)
            except Exception as error:  # whatever it is, it is this client's, and the container goes on
                client.refuse(error, tried="do what was asked for")

    def _take(self, client: Connection, frame: Frame) -> None:
        if frame.kind == frames.EXEC:
            self._joining.append(Joining(self._directory, frame.json(), client))
        elif frame.kind == frames.LOOK:
            assert self._first.init.root is not None
            client.hand(self._first.init.root)
        elif frame.kind == frames.FOLLOW:
            self._followers.append(client)
            client.tell(frames.pack(frames.GREW))  # it may have, before this was heard
        else:
            process = self._processes.get(frame.process)
            if frame.kind not in (frames.ATTACH, frames.WAIT):
                if process is not None:  # else it has ended
                    process.take(client, frame)
            elif process is None:
                raise StateError(f"there is no process {frame.process} in the container")
            elif frame.kind == frames.WAIT:
                process.wait_for(client)
            else:
                client.send(frames.pack(frames.STARTED, process=process.number))
                process.attach(client)

    def _gone(self, client: Connection) -> None:
        self._connections.remove(client)
        if client in self._followers:
            self._followers.remove(client)
        for joining in [one for one in self._joining if one.client is client]:
            self._give_up(joining)
        for process in self._processes.values():
            process.gone(client)

    def _write_log(self, stream: str, data: bytes) -> None:
        if self._log.write(stream, data):
            for follower in self._followers:
                follower.tell(frames.pack(frames.GREW))

    # -- Processes --

    def _advance(self, joining: Joining) -> None:
        if joining not in self._joining:
            return  # given up since it was polled
        try:
            running = joining.advance()
        except Exception as error:
            self._give_up(joining)
            joining.client.refuse(error, tried="start the command")
            return
        if running is not None:
            self._joining.remove(joining)
            self._bury(joining)
            self._last += 1
            process = Process(self._last, *running, joining.client)
            self._processes[process.number] = process
            joining.client.send(frames.pack(frames.STARTED, process=process.number))

    def _give_up(self, joining: Joining) -> None:
        self._joining.remove(joining)
        joining.give_up()
        if joining.init is not None:
            self._unwanted.append(joining.init)
        self._bury(joining)

    def _bury(self, joining: Joining) -> None:
        self._unreaped |= {pidfd: pid for pid, pidfd in joining.unreaped.items()}

    def _hear_of_children(self) -> None:
        """SIGCHLD: some have ended, or their tracers have let go of them."""
        os.read(self._news, 4096)
        self._traced.clear()
        self._may_have_strays = self._last > 0 or bool(self._joining)

    def _reap(self, pidfd: int) -> None:
        pid = self._unreaped.get(pidfd)
        if pid is not None:
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                self._traced.add(pidfd)
                return
            del self._unreaped[pidfd]
            os.close(pidfd)
            self._may_have_strays = True

    def _known(self) -> set[int]:
        inits = [*(process.init for process in self._processes.values()), *self._unwanted]
        inits += [joining.init for joining in self._joining if joining.init is not None]
        births = [pid for joining in self._joining for pid in joining.unreaped]
        return {*(init.pid for init in inits), *self._unreaped.values(), *births}

    def _collect(self, init: Init) -> None:
        pidfd = init.pidfd
        if init.collect(waiting=False) is None:
            self._traced.add(pidfd)
        else:
            self._unwanted.remove(init)

    def _end(self, process: Process) -> None:
        """An added process has ended: its code follows the last of its own output."""
        pidfd = process.init.pidfd
        code = process.init.collect(waiting=False)
        if code is None:
            self._traced.add(pidfd)
            return
        process.finish()
        for client in process.clients():
            client.send(process.exited(code))
        if process.owner is not None:
            process.owner.end()
        del self._processes[process.number]
