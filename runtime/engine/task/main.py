"""The shim from its orders to its end."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

from drivers.errors import DriverError
from drivers.mounts import Mount
from runtime.engine import frames
from runtime.engine.containers import ContainerStore
from runtime.engine.logs import Writer
from runtime.engine.paths import Paths
from runtime.engine.task.life import Life
from runtime.engine.task.streams import Caller, Streams
from runtime.engine.watch import short_path
from runtime.errors import RuntimeFault, sentence, step
from unionfs.linux import processes

SOCKET = 3


def main() -> None:
    processes.close_range(SOCKET + 1)
    os.chdir("/")
    os.umask(0o077)  # as in cli/__init__.py
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    caller = Caller(socket.socket(fileno=SOCKET))
    received = _orders(caller)
    if received is not None:
        orders, lock = received
        caller.finish(_keep(orders, lock, caller))
    os._exit(0)  # nothing of ours is left to be finalised; the caller waits for this


def _orders(caller: Caller) -> tuple[dict[str, Any], int] | None:
    """What the caller wants and the container's lock; None if it has changed its mind and hung up."""
    assert caller.sock is not None
    caller.sock.setblocking(True)
    splitter = frames.Splitter()
    data, descriptors = frames.receive_with_descriptors(caller.sock, 1)
    while data:
        for frame in splitter.feed(data):
            caller.sock.setblocking(False)
            return frame.json(), descriptors[0]
        data = caller.sock.recv(frames.CHUNK)
    return None


def _keep(orders: dict[str, Any], lock: int, caller: Caller) -> bytes:
    """Have the container run from begin to end; the last frame for the caller."""
    store = ContainerStore(Paths.of(orders["root"], orders["state"]))
    container = store.load(orders["id"])
    life = Life(store, container)
    mounts = [Mount(kind, source, tuple(options)) for kind, source, options in orders["mounts"]]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with step("make its run directory"):
            os.makedirs(container.run_directory, mode=0o700)  # from here on it is ours in the eyes of recovery
            life.record()
            _listen(listener, container.run_directory)
        with step("open its log"):
            log = Writer(container.log)  # before anyone can come to follow it
        init, ends = life.begin(mounts, (orders["rows"], orders["columns"]))
    except Exception as error:  # whatever it is, the caller hears of it and nothing is left
        name, message = _fault(error)
        trouble = life.end(0)
        listener.close()
        os.close(lock)
        return frames.pack_json(
            frames.FAULT, {"fault": name, "message": f"{message}; {trouble}" if trouble else message}
        )
    # A system going down sends it to every process: the container's own stop, and then ours.
    signal.signal(signal.SIGTERM, lambda number, _: init.kill(number))
    caller.send(frames.pack(frames.STARTED))
    assert init.root is not None
    streams = Streams(ends, log, caller, listener, init.pidfd, init.root)
    streams.run()
    code = init.wait()
    trouble = life.end(code)
    os.close(lock)
    streams.close()
    return frames.pack_json(frames.EXIT, {"code": code, "trouble": trouble})


def _listen(listener: socket.socket, directory: str) -> None:
    with short_path(directory) as path:
        listener.bind(f"{path}/shim.sock")
    listener.listen(16)
    listener.setblocking(False)


def _fault(error: Exception) -> tuple[str, str]:
    """The class name and the line to report an error with."""
    if isinstance(error, RuntimeFault):
        return type(error).__name__, sentence(error)
    if isinstance(error, DriverError):
        return RuntimeFault.__name__, sentence(error)
    if isinstance(error, OSError):
        return RuntimeFault.__name__, f"cannot start the container: {sentence(error)}"
    sys.excepthook(type(error), error, error.__traceback__)  # seen with --debug only: standard error is /dev/null
    return RuntimeFault.__name__, f"internal error: {type(error).__name__}: {sentence(error)}"
