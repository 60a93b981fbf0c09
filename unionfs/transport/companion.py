"""Taking turns on one processor: for machines of two, where a wake-up across processors costs more than a request.

A program and its server never run at the same time: one waits for the other. With two processors, one of which is idle,
the scheduler wakes each of them on the idle one, and to wake an idle processor takes longer than most requests, by far
in a virtual machine (65 us for both ways, and 3 us on one processor, measured). It leaves both on one processor when
the other is busy. So while requests follow each other closely
  - the leader keeps to the processor of the process that asks, and looks now and then where that is,
  - a process of the lowest priority (nice 19: it yields to any other work) polls on the other, no longer than a leader
    may poll (`-o spin=`); after that it sleeps.
With more processors there is always an idle one: there the leader itself polls (`workers`).

    server                               companion
    page[TURNS] += 1, a request  ------> sees it change: goes on polling
                                         no change for `spin`: page[STATE] = ASLEEP, sleeps on the pipe
    page[STATE] is ASLEEP: a byte  ----> wakes
    the end of the pipe ---------------> ends

The process is a fork of the server's, made before there are threads or a mount: it costs a page table and what pages it
touches, and is there when the first burst comes.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import time

_TURNS, _STATE = 0, 1
_AWAKE, _ASLEEP = range(2)

# Requests between two looks at where the client runs, before the leader follows it and then.
_LOOK, _LOOK_AGAIN = 8, 64


class Companion:
    """The server's side. `turn` and `rest` are called by the leader only, `close` when there is none any more."""

    def __init__(self, spin_us: int) -> None:
        """Raises OSError: EAGAIN, there is no process to be had."""
        self._processors = os.sched_getaffinity(0)
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _poll(self._page, reader, spin_us * 1000)
            finally:
                os._exit(0)
        os.close(reader)
        self._turns = 0
        self._look = 0
        self._client = 0
        self._here: int | None = None  # the processor that the leader keeps to

    def turn(self, client: int) -> None:
        """A request of the process `client` came closely after the last one."""
        page = self._page
        self._turns += 1
        page[_TURNS] = self._turns & 255
        if page[_STATE] == _ASLEEP:
            # Set by both sides; at worst it is told twice, or only at the next request.
            page[_STATE] = _AWAKE
            try:
                os.write(self._writer, b"x")
            except BrokenPipeError:
                pass  # somebody killed it; all goes on, only slower
        if client and self._turns >= self._look:  # 0: the kernel's own (RELEASE, FORGET)
            self._follow(client)
            self._look = self._turns + (_LOOK if self._here is None else _LOOK_AGAIN)

    def rest(self) -> None:
        """The next request is not close: the leader may be woken anywhere."""
        if self._here is not None:
            self._here = None
            try:
                os.sched_setaffinity(0, self._processors)
            except OSError:
                pass  # our cpuset was changed, which has set it as well

    def _follow(self, client: int) -> None:
        """Two looks in a row at one client, and the leader goes where that is; not where several are busy."""
        if client != self._client:
            self._client = client
            self.rest()
            return
        here = _processor(client)
        if here in self._processors and here != self._here:
            try:
                os.sched_setaffinity(self._pid, self._processors - {here})
                os.sched_setaffinity(0, {here})
            except OSError:
                return  # it was killed, or our cpuset was changed
            self._here = here

    def close(self) -> None:
        """Return when the process has ended."""
        os.close(self._writer)
        try:
            os.waitpid(self._pid, 0)
        except ChildProcessError:
            pass  # whoever started us ignores SIGCHLD: the kernel has collected it
        self._page.close()


def _processor(pid: int) -> int:
    """Where a process ran last (proc(5), /proc/PID/stat, field 39); -1 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as fields:
            return int(fields.read().rpartition(b")")[2].split()[36])
    except OSError:
        return -1


def _poll(page: mmap.mmap, pipe: int, spin_ns: int) -> None:
    """The process's side, until the server has ended."""
    os.closerange(0, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    for number in (signal.SIGTERM, signal.SIGINT):  # meant for the server, which ends this
        signal.signal(number, signal.SIG_IGN)
    os.nice(19)
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    clock = time.perf_counter_ns
    seen, until = -1, 0
    while True:
        turns = page[_TURNS]
        if turns != seen:
            seen, until = turns, clock() + spin_ns
        elif clock() > until:
            page[_STATE] = _ASLEEP
            poll.poll()
            if not os.read(pipe, 4096):
                return
            page[_STATE] = _AWAKE
            until = clock() + spin_ns
