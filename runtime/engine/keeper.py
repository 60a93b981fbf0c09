"""The parent of a process that `exec` adds to a container: a child of the client, in a session of its own.

A container ends only when every process of its pid namespace has been collected, also one whose parent is outside
(zap_pid_ns_processes, kernel/pid_namespace.c). The client itself may be stopped, by ctrl-Z or for reading its terminal
from the background, and a stopped parent collects nothing: the container could not end, not even by SIGKILL.

    client                                   keeper
      │ fork                                   │  oci.exec_process, start
      │  STARTED with pidfd [and console]      │  or  FAULT {fault, message}
      │ ◀───────────────────────────────────── │
      │  EXIT code                             │  when the process has been collected
      │ ◀───────────────────────────────────── │
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Any, NoReturn

from runtime import errors
from runtime.engine import frames
from runtime.engine.stdio import Ends
from runtime.oci.container import Stdio, exec_process


class Kept:
    """A process in a container, seen from the client. `pidfd` becomes readable when it has ended."""

    def __init__(self, channel: socket.socket, keeper: int, pidfd: int, console: int | None) -> None:
        self.pidfd, self.console = pidfd, console
        self._channel, self._keeper = channel, keeper

    def kill(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass

    def wait(self) -> int:
        """The exit code as docker gives it, when the process has ended."""
        splitter = frames.Splitter()
        while (received := frames.receive(self._channel, splitter)) is not None:
            for frame in received:
                os.waitpid(self._keeper, 0)
                return frame.number()
        os.waitpid(self._keeper, 0)
        return 128 + signal.SIGKILL  # somebody killed the keeper

    def close(self) -> None:
        self._channel.close()
        os.close(self.pidfd)


def keep(pid: int, process: dict[str, Any], *, spec: dict[str, Any], theirs: Stdio | None, ours: Ends) -> Kept:
    """Run `process` in the container whose first process is `pid`, on the ends `theirs` of its streams.

    Raises what exec_process and its start raise. The calling process must have one thread.
    """
    channel, other = socket.socketpair()
    keeper = os.fork()
    if keeper == 0:
        channel.close()
        ours.close()  # its end of the input would keep the input from ending
        _keep(other, pid, process, spec, theirs)
    other.close()
    try:
        data, descriptors = frames.receive_with_descriptors(channel, 2)
        answer = next(frames.Splitter().feed(data), None)
        if answer is None or answer.kind != frames.STARTED:
            os.waitpid(keeper, 0)
            if answer is None:
                raise errors.ContainerError("the process that was to keep the command has been killed")
            fault = answer.json()
            raise errors.by_name(fault["fault"], fault["message"])
    except BaseException:
        channel.close()
        raise
    return Kept(channel, keeper, descriptors[0], descriptors[1] if len(descriptors) > 1 else None)


def _keep(
    channel: socket.socket, pid: int, process: dict[str, Any], spec: dict[str, Any], theirs: Stdio | None
) -> NoReturn:
    try:
        os.setsid()
        child = exec_process(pid, process, spec=spec, stdio=theirs)
        child.start()
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
