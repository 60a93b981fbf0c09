"""Failing system calls on purpose: a server in a process of its own, and strace that kills it or fails its Nth call.

A server here is forked from the test run, which has imported everything already: one costs a tenth of the command's
start. `Trace` attaches strace to it; its injection counters are per thread and per system call (strace(1)), so a point
is (system call, N) and killing happens before the Nth call takes effect.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from unionfs.linux import consts, mounts
from unionfs.transport.delivery import AtMountPoint
from unionfs.union.branch import Branch

# The calls that change what is on disk. Opening is one only when it creates; `_changes` looks.
CALLS = (
    "open,openat,openat2,link,linkat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,mknod,mknodat,symlink,"
    "symlinkat,setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr,chmod,fchmod,fchmodat,chown,fchown,"
    "lchown,fchownat,utimensat,truncate,ftruncate,pwrite64,pwritev,copy_file_range,fallocate,ioctl,fsync,fdatasync"
)
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")


class Point(NamedTuple):
    """Before the `number`th call of `call` in a thread of the server."""

    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.call}#{self.number}"


class Server:
    """A union of `lower` and `upper`, served by a child of this process until `stop` or a kill."""

    def __init__(
        self, lower: str, upper: str, path: str, log: str, *, transport: str, passthrough: str = "programs"
    ) -> None:
        from unionfs.transport import direct, session  # before the fork: it takes a tenth of a second, once

        self.path = path
        self.log = log
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            # Without its companion the direct transport makes the same calls each time.
            serves: dict[str, Callable[..., None]] = {
                "direct": functools.partial(direct.serve, spin_us=0, passthrough=passthrough),
                "pyfuse3": session.serve,
            }
            _serve(serves[transport], lower, upper, path, log, writer)
        os.close(writer)
        with open(reader, "rb") as ready:
            answer = ready.read(1)
        if answer != b"r":
            self._reap()
            raise AssertionError(f"the server did not start:\n{self._logged()}")

    def stop(self) -> None:
        """Unmount and wait for the end, which must be a clean one."""
        mounts.umount2(self.path)
        status = self._reap()
        assert status == 0, f"the server ended with status {status}:\n{self._logged()}"
        assert "Traceback" not in self._logged(), f"the server met an exception it does not know:\n{self._logged()}"

    def bury(self) -> None:
        """After a kill: reap it and take its dead mount away."""
        status = self._reap()
        mounts.umount2(self.path, consts.MNT_DETACH)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL

    def dispose(self) -> None:
        """End it, whatever state a failed test left it in."""
        if not self.pid:
            return
        os.kill(self.pid, signal.SIGKILL)
        status = self._reap()
        if mounts.mounted_at(os.path.realpath(self.path)):
            mounts.umount2(self.path, consts.MNT_DETACH)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed, f"the server had ended by itself with status {status}:\n{self._logged()}"

    def _logged(self) -> str:
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()[-3000:]

    def _reap(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return status


def _serve(serve: Callable[..., None], lower: str, upper: str, path: str, log: str, ready: int) -> None:
    status = 1
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        logging.basicConfig(force=True, level=logging.ERROR, stream=open(log, "a", encoding="utf-8"))  # noqa: SIM115
        branches = [Branch.open(os.fsencode(upper), "rw"), Branch.open(os.fsencode(lower), "ro")]
        serve(branches, AtMountPoint(path), flags=(), allow_other=True, ready=lambda: os.write(ready, b"r") and None)
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


class Trace:
    """strace on a running server, from when this returns until `detach` or the server's end."""

    def __init__(self, server: Server, output: str, inject: str = "") -> None:
        self.output = output
        arguments = ["strace", "-f", "-p", str(server.pid), "-o", output, "-e", f"trace={CALLS}"]
        if inject:
            arguments += ["-e", f"inject={inject}"]
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert "attached" in line, line + self.process.stderr.read()

    def detach(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.ended()

    def ended(self) -> None:
        """Wait for it: after a kill."""
        self.process.communicate()

    @property
    def injected(self) -> bool:
        with open(self.output, encoding="utf-8", errors="replace") as lines:
            return any("(INJECTED)" in line for line in lines)

    def points(self) -> list[Point]:
        """The changing calls that were made, as points; several threads' counts are joined."""
        counts: Counter[tuple[str, str]] = Counter()
        found: dict[Point, None] = {}
        with open(self.output, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                match = _LINE.match(line)
                if match is None:
                    continue
                thread, call, arguments = match.groups()
                counts[thread, call] += 1
                if _changes(call, arguments):
                    found[Point(call, counts[thread, call])] = None
        return list(found)


def _changes(call: str, arguments: str) -> bool:
    if call.startswith("open"):
        return "O_CREAT" in arguments or "O_TMPFILE" in arguments or "O_TRUNC" in arguments
    return call != "ioctl" or "FICLONE" in arguments
