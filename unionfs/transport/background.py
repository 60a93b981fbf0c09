"""The server as a background process, and its log.

    unionfs mount             server
      fork ------------------> setsid, standard streams to /dev/null
      read the pipe            open branches, mount, answer one request
                <------------- "\\n"  mounted: exit 0
                <------------- text  refused: print it, exit 1
                <------------- (end) died: take its mount away, exit 1
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import syslog
from collections.abc import Callable, Collection

from unionfs.linux.mounts import mounted_at
from unionfs.options import MountPlan
from unionfs.transport import device, serve
from unionfs.transport.delivery import Delivery

_READY = b"\n"

# serve(ready): mounts, calls ready once, serves; raises OSError when it refuses.
Serve = Callable[[Callable[[], None]], None]


class SyslogHandler(logging.Handler):
    """syslog(3): unlike logging.handlers' it does without /dev/log, and finds a syslogd that starts later."""

    _PRIORITIES = {
        logging.DEBUG: syslog.LOG_DEBUG,
        logging.INFO: syslog.LOG_INFO,
        logging.WARNING: syslog.LOG_WARNING,
        logging.ERROR: syslog.LOG_ERR,
    }

    def __init__(self) -> None:
        super().__init__()
        syslog.openlog("unionfs", syslog.LOG_PID, syslog.LOG_DAEMON)

    def emit(self, record: logging.LogRecord) -> None:
        priority = self._PRIORITIES.get(record.levelno, syslog.LOG_CRIT)
        text = self.format(record).encode("utf-8", "backslashreplace").decode()  # names need not be text
        for line in text.splitlines():
            syslog.syslog(priority, line)


def log_handler(path: str | None, *, foreground: bool) -> logging.Handler:
    """The file `path`; else stderr in the foreground and syslog in the background. OSError if it cannot be opened."""
    if path is None and not foreground:
        return SyslogHandler()
    stream = sys.stderr
    if path is not None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        stream = os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    return handler


def log_to(handler: logging.Handler, *, debug: bool) -> None:
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("pyfuse3").setLevel(logging.WARNING)  # its debug lines are about its own workers


def mount(
    plan: MountPlan,
    delivery: Delivery,
    *,
    foreground: bool = False,
    log: str | None = None,
    debug: bool = False,
    keep: Collection[int] = (),
) -> None:
    """Serve a resolved plan: in the background, and return when it is delivered; or in the foreground, to the end. The
    server keeps the descriptors `keep`. Raises OSError with the reason."""
    try:
        handler = log_handler(log, foreground=foreground)
    except OSError as error:
        raise OSError(error.errno, f"the log cannot be written ({error.strerror})", log) from None
    log_to(handler, debug=debug)

    def serve_it(ready: Callable[[], None]) -> None:
        serve.serve(plan, delivery, ready)

    if foreground:
        serve_it(lambda: None)
    else:
        start(serve_it, handler, delivery.name, keep)
    logging.shutdown()


def start(serve: Serve, handler: logging.Handler, name: str, keep: Collection[int] = ()) -> None:
    """Run `serve` in a new background process; return when it is ready. Raises OSError with the server's reason.

    `name` is the mount point, or what a mount without one is called. The server keeps the descriptors `keep`.
    """
    # A caller without standard streams: the pipe must not get one of their numbers, which the server fills.
    while (spare := os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)) < 3:
        pass
    os.close(spare)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            status = _server(serve, handler, name, writer, keep)
        finally:
            os._exit(status)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    if said == _READY:
        return
    os.waitpid(pid, 0)
    if said:
        path, _, reason = os.fsdecode(said).partition("\0")
        raise OSError(errno.EIO, reason, path)
    left = mounted_at(name)
    if left is not None and device.identity_of(left):
        device.detach(name, lazy=True)
    raise OSError(errno.EIO, "the server ended before the mount answered; see its log (--log FILE)", name)


def _server(serve: Serve, handler: logging.Handler, name: str, writer: int, keep: Collection[int]) -> int:
    """The child's part; returns its exit status."""
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    keep = {writer, *keep}
    if isinstance(handler, logging.StreamHandler):
        keep.add(handler.stream.fileno())
        os.dup2(handler.stream.fileno(), 2)  # what libfuse and a dying interpreter have to say
    _close_all_but(keep)
    told = False

    def tell(what: bytes) -> None:
        nonlocal told
        if not told:
            told = True
            try:
                os.write(writer, what)
            except BrokenPipeError:
                pass  # whoever asked for the mount is gone; the mount is there
            os.close(writer)

    try:
        serve(lambda: tell(_READY))
    except OSError as error:
        place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else name
        logging.getLogger(__name__).error("%s: %s", place, error.strerror)
        tell(os.fsencode(f"{place}\0{error.strerror or error}"))
        return 1
    except BaseException as error:
        logging.getLogger(__name__).critical("the session ended", exc_info=error)
        return 1
    return 0


def _close_all_but(keep: set[int]) -> None:
    """Descriptors that the caller happened to have open: a server must not hold somebody's lock or pipe."""
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
