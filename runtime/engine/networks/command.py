"""Run a firewall program: text in, text out, no shell.

posix_spawn and two memfds, because importing subprocess alone costs more than nft takes for its transaction.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable

from runtime.errors import NetworkError

_PATIENCE = 60.0  # seconds for it to end: iptables waits for others' lock


def run(*argv: str, text: str = "") -> str:
    """What the program wrote, with `text` as its input. NetworkError with its last line when it fails."""
    code, output = attempt(*argv, text=text)
    if code:
        complaint = output.strip().splitlines() or [f"exit code {code}"]
        raise NetworkError(f"{os.path.basename(argv[0])}: {complaint[0]}")
    return output


def attempt(*argv: str, text: str = "") -> tuple[int, str]:
    """Its exit code and what it wrote to stdout and stderr together."""
    given = os.memfd_create("stdin")
    written = os.memfd_create("stdout")
    try:
        os.write(given, text.encode())
        os.lseek(given, 0, os.SEEK_SET)
        files = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, written, 1), (os.POSIX_SPAWN_DUP2, written, 2)]
        # A handler that raises between the spawn and the wait would leave it running.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.posix_spawn(argv[0], argv, {**os.environ, "LC_ALL": "C"}, file_actions=files, setsigmask=())
            status = _await(pid, argv[0], held)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        output = os.pread(written, os.fstat(written).st_size, 0)
        return os.waitstatus_to_exitcode(status), output.decode(errors="replace")
    finally:
        os.close(given)
        os.close(written)


def _await(pid: int, program: str, mask: Iterable[int]) -> int:
    """Its wait status. It has ended, whatever ends the wait: whoever holds the host's lock lets go of it then. `mask`
    has the signals that do not end it."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_PATIENCE * 1000):
            raise NetworkError(f"{os.path.basename(program)} has not ended within {_PATIENCE:g} seconds")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(pidfd)
    return os.waitpid(pid, 0)[1]
