"""The task from its orders to its end."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

from drivers.api import Mount
from runtime.engine import frames
from runtime.engine.containers.logs import Writer
from runtime.engine.installation import Installation
from runtime.engine.line import short_path
from runtime.engine.paths import Paths
from runtime.engine.task.connection import Connection, finish
from runtime.engine.task.life import Life
from runtime.engine.task.loop import Loop
from runtime.engine.watch import SOCKET as LISTENER
from runtime.errors import step
from unionfs.linux import processes

SOCKET = 3


def main() -> None:
    processes.close_range(SOCKET + 1)
    os.chdir("/")
    os.umask(0o077)  # as in cli/__init__.py
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    caller = Connection(socket.socket(fileno=SOCKET))
    received = caller.receive_with_descriptors()
    if received is not None:  # else it has changed its mind and hung up
        orders, (lock,) = received
        _keep(orders.json(), lock, caller)
    os._exit(0)  # nothing of ours is left to be finalised; the caller waits for this


def _keep(orders: dict[str, Any], lock: int, caller: Connection) -> None:
    """Have the container run from begin to end, and tell the caller of that."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    life: Life | None = None
    try:
        installation = Installation(Paths.of(orders["root"], orders["state"]))
        container = installation.containers.load(orders["id"])
        mounts = [Mount(kind, source, tuple(options)) for kind, source, options in orders["mounts"]]
        life = Life(installation, container)
        with step("make its run directory"):
            container.make_run_directory()  # from here on it is ours in the eyes of recovery
            life.record()
            _listen(listener, container.run_directory)
        with step("open its log"):
            log = Writer(container.log)  # before anyone can come to follow it
        init, ends = life.begin(mounts, (orders["rows"], orders["columns"]))
    except Exception as error:  # whatever it is, the caller hears of it and nothing is held
        trouble = life.fail(error) if life is not None else ""
        listener.close()
        os.close(lock)
        caller.refuse(error, tried="start the container", besides=trouble)
        finish([caller])
        return
    # A system going down sends it to every process: the container's own stop, and then ours.
    signal.signal(signal.SIGTERM, lambda number, _: init.kill(number))
    caller.send(frames.pack(frames.STARTED))
    loop = Loop(container.run_directory, init, ends, log, caller, listener)
    loop.run()
    code = init.wait()
    trouble = life.end(code)
    os.close(lock)
    loop.close(code, trouble)


def _listen(listener: socket.socket, directory: str) -> None:
    with short_path(directory) as path:
        listener.bind(f"{path}/{LISTENER}")
    listener.listen(16)
    listener.setblocking(False)
