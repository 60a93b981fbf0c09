"""Taking turns on one processor: for machines of two, where a wake-up across processors costs more than a request.

A program and its server never run at the same time: one waits for the other. With two processors, one of which is idle,
the scheduler wakes each of them on the idle one, and to wake an idle processor takes longer than most requests, by far
in a virtual machine (65 us for both ways, and 3 us on one processor, measured). It leaves both on one processor when
the other is busy. So while requests follow each other closely
  - the leader keeps to the processor of the process that asks, and looks now and then where that is,
  - a process of the lowest priority (nice 19: it yields to any other work) polls on the other, no longer than a leader
    may poll (`-o spin=`); after that it sleeps, and after some seconds it ends.
With more processors there is always an idle one: there the leader itself polls (`workers`).

    server                               companion
    page[TURNS] += 1, a request  ------> sees it change: goes on polling
                                         no change for `spin`: page[STATE] = ASLEEP, sleeps on the pipe
    page[STATE] is ASLEEP: a byte  ----> wakes
    the end of the pipe ---------------> ends

The process is this file, run by itself: it imports nothing of ours.
"""

from __future__ import annotations

import mmap
import os
import select
import sys
import time

_TURNS, _STATE = 0, 1
_GONE, _STARTING, _AWAKE, _ASLEEP = range(4)

_PAGE_FD, _PIPE_FD = 3, 4
_IDLE_MS = 5000

# Requests in close succession before it is worth starting one, and between two looks at where the client runs.
_BURST = 100
_LOOK = 32


class Companion:
    """The server's side. `turn` and `rest` are called by the leader only, `close` when there is none any more."""

    def __init__(self, spin_us: int) -> None:
        self._spin_us = spin_us
        self._processors = os.sched_getaffinity(0)
        self._memory = os.memfd_create("companion", os.MFD_CLOEXEC)
        os.ftruncate(self._memory, mmap.PAGESIZE)
        self._page = mmap.mmap(self._memory, mmap.PAGESIZE)
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pid = 0
        self._turns = 0
        self._look = 0
        self._client = 0
        self._here: int | None = None  # the processor that the leader keeps to

    def turn(self, client: int) -> None:
        """A request of the process `client` came closely after the last one."""
        page = self._page
        self._turns += 1
        page[_TURNS] = self._turns & 255
        state = page[_STATE]
        if state == _ASLEEP:
            # Set by both sides; at worst it is told twice, or only at the next request.
            page[_STATE] = _AWAKE
            os.write(self._writer, b"x")
        elif state == _GONE and self._turns >= _BURST:
            self._start()
        if client and self._turns >= self._look:  # 0: the kernel's own (RELEASE, FORGET)
            self._look = self._turns + _LOOK
            self._follow(client)

    def rest(self) -> None:
        """The next request is not close: the leader may be woken anywhere."""
        if self._here is not None:
            self._here = None
            os.sched_setaffinity(0, self._processors)

    def _follow(self, client: int) -> None:
        """Two looks in a row at one client, and the leader goes where that is; not where several are busy."""
        if client != self._client:
            self._client = client
            self.rest()
            return
        here = _processor(client)
        if here in self._processors and self._pid and here != self._here:
            try:
                os.sched_setaffinity(self._pid, self._processors - {here})
            except OSError:
                return  # it has just ended
            os.sched_setaffinity(0, {here})
            self._here = here

    def _start(self) -> None:
        self._reap()
        self._turns = self._look = 0
        self._page[_STATE] = _STARTING
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", __file__, str(self._spin_us)],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, self._memory, _PAGE_FD),
                    (os.POSIX_SPAWN_DUP2, self._reader, _PIPE_FD),
                ],
                setsigmask=[],
                setsigdef=range(1, 32),
            )
        except OSError:
            pass  # no process to be had; STARTING for ever: it is not tried again

    def _reap(self) -> None:
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0

    def close(self) -> None:
        """Return when the process has ended."""
        os.close(self._writer)
        self._reap()
        os.close(self._reader)
        self._page.close()
        os.close(self._memory)


def _processor(pid: int) -> int:
    """Where a process ran last (proc(5), /proc/PID/stat, field 39); -1 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as fields:
            return int(fields.read().rpartition(b")")[2].split()[36])
    except OSError:
        return -1


def _poll(spin_ns: int) -> None:
    """The process's side."""
    page = mmap.mmap(_PAGE_FD, mmap.PAGESIZE)
    pipe = select.poll()
    pipe.register(_PIPE_FD, select.POLLIN)
    clock = time.perf_counter_ns
    seen, until = page[_TURNS], clock() + spin_ns
    page[_STATE] = _AWAKE
    while True:
        turns = page[_TURNS]
        if turns != seen:
            seen, until = turns, clock() + spin_ns
        elif clock() > until:
            page[_STATE] = _ASLEEP
            if not pipe.poll(_IDLE_MS):
                page[_STATE] = _GONE
                return
            if not os.read(_PIPE_FD, 4096):
                return  # the server has ended
            page[_STATE] = _AWAKE
            until = clock() + spin_ns


if __name__ == "__main__":
    os.nice(19)
    _poll(int(sys.argv[1]) * 1000)
