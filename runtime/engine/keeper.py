"""The parent of a process that `exec` adds to a container: a child of the client, in a session of its own.

A container ends only when every process of its pid namespace has been collected, also one whose parent is outside
(zap_pid_ns_processes, kernel/pid_namespace.c). The client itself may be stopped, by ctrl-Z or for reading its terminal
from the background, and a stopped parent collects nothing: the container could not end, not even by SIGKILL.

    client                                   keeper
      │ fork                                   │  the process as it is wished, oci.exec_process, start
      │  STARTED with pidfd [and console]      │  or  FAULT {fault, message}
      │ ◀───────────────────────────────────── │
      │  EXIT code                             │  when the process has been collected
      │ ◀───────────────────────────────────── │
      │ (end of file) ───────────────────────▶ │  before STARTED: the process is given up

Whoever asks the container's file system may have to wait for it, in the kernel, and hears no signal there. So all that
asks it is done on the keeper's side, and the client waits for the keeper with a bound.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Any, NoReturn

from runtime import errors
from runtime.engine import frames, waiting
from runtime.engine.stdio import Ends
from runtime.oci import container as oci
from runtime.oci.container import Stdio
from runtime.oci.process import Init

_PATIENCE = 60.0  # seconds for a command to be started
_ANSWER = 60.0  # and, when it has ended, for the keeper to say how
_END = 5.0  # and for a keeper to end that has nothing more to do

Process = Callable[[], dict[str, Any]]


class Kept:
    """A process in a container, seen from the client. `pidfd` becomes readable when it has ended."""

    def __init__(
        self, channel: socket.socket, keeper: int, pidfd: int, console: int | None, answered: waiting.Answered
    ) -> None:
        self._answered = answered
        self.pidfd, self.console = pidfd, console
        self._channel, self._keeper = channel, keeper

    def kill(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass

    def wait(self) -> int:
        """The exit code as docker gives it, when the process has ended: 137 where somebody has killed the keeper.

        ContainerError: the keeper does not answer, which somebody has stopped, or a signal comes meanwhile.
        """
        splitter = frames.Splitter()
        try:
            while self._answered(self._channel.fileno(), _ANSWER):
                received = frames.receive(self._channel, splitter)
                if received is None:
                    return 128 + signal.SIGKILL
                for frame in received:
                    if frame.kind == frames.FAULT:
                        raise _fault(frame)
                    return frame.number()
            raise errors.ContainerError(
                "the command has ended, and how is not known: the process that kept it does not answer"
            )
        finally:
            waiting.collect(self._keeper, _END)

    def close(self) -> None:
        self._channel.close()
        os.close(self.pidfd)


def keep(
    directory: str, process: Process, *, theirs: Stdio | None, ours: Ends, answered: waiting.Answered
) -> Kept:
    """Run what `process` gives in the container of that run directory, on the ends `theirs` of its streams.

    Raises what `process` and oci raise, and ContainerError when that takes too long or a signal
    comes meanwhile, which then has its effect. The calling process must have one thread.
    """
    channel, other = socket.socketpair()
    keeper = os.fork()
    if keeper == 0:
        channel.close()
        ours.close()  # its end of the input would keep the input from ending
        _keep(other, directory, process, theirs)
    other.close()
    try:
        if not answered(channel.fileno(), _PATIENCE):
            channel.close()
            waiting.collect(keeper, _END)
            raise errors.ContainerError(
                f"the command has not been started within {_PATIENCE:g} seconds: the container's file system does not "
                "answer"
            )
        data, descriptors = frames.receive_with_descriptors(channel, 2)
        answer = next(frames.Splitter().feed(data), None)
        if answer is None or answer.kind != frames.STARTED:
            waiting.collect(keeper, _END)
            if answer is None:
                raise errors.ContainerError("the process that was to keep the command has been killed")
            raise _fault(answer)
    except BaseException:
        channel.close()
        raise
    return Kept(channel, keeper, descriptors[0], descriptors[1] if len(descriptors) > 1 else None, answered)


def _fault(frame: frames.Frame) -> errors.RuntimeFault:
    told = frame.json()
    return errors.by_name(told["fault"], told["message"])


def _keep(channel: socket.socket, directory: str, process: Process, theirs: Stdio | None) -> NoReturn:
    try:
        os.setsid()
        with errors.step("start the command"):
            child = _started(directory, process(), theirs, channel.fileno())
        given = [child.pidfd] if child.console is None else [child.pidfd, child.console]
        socket.send_fds(channel, [frames.pack(frames.STARTED)], given)
        # Who reads what we hold open need not wait for us: the streams, the terminal and the client's own.
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2, *(theirs or ()), *given[1:]):
            os.dup2(null, fd)
        channel.sendall(frames.pack_number(frames.EXIT, child.wait()))
    except BaseException as error:  # whatever it is, the client tells it; nothing may go on here as a second client
        fault = error if isinstance(error, errors.RuntimeFault) else errors.RuntimeFault(errors.sentence(error))
        channel.send(frames.pack_json(frames.FAULT, {"fault": type(fault).__name__, "message": str(fault)}))
    finally:
        os._exit(0)


def _started(directory: str, process: dict[str, Any], theirs: Stdio | None, hangup: int) -> Init:
    """The process, running; given up when `hangup` can be read before."""
    birth = oci.join(directory, process, stdio=theirs)
    child = None
    try:
        while child is None:
            _hear(birth.fileno(), hangup)
            child = birth.advance()
        init = Init(child)
        init.begin()
        _hear(init.fileno(), hangup)
        init.started()
        return init
    finally:
        if child is None:
            birth.give_up()
        birth.reap()


def _hear(fd: int, hangup: int) -> None:
    poll = select.poll()
    for one in (fd, hangup):
        poll.register(one, select.POLLIN)
    if fd not in {ready for ready, _ in poll.poll()}:
        raise errors.ContainerError("the process is not wanted any more")
