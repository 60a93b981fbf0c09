"""The process that keeps the second processor awake: there while requests follow each other closely, and never longer
than its server."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.mounting import Union
from unionfs.transport import companion, info
from unionfs.transport.companion import Companion

two_processors = pytest.mark.skipif(len(os.sched_getaffinity(0)) != 2, reason="it is for two processors")


def until(condition: Callable[[], object]) -> None:
    """For what no event tells of: what another process does."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def pair() -> Iterator[Companion]:
    affinity = os.sched_getaffinity(0)
    found = Companion(spin_us=2000)
    yield found
    found.close()
    os.sched_setaffinity(0, affinity)


def awake(pair: Companion) -> None:
    while pair._page[companion._STATE] != companion._AWAKE:
        pair.turn(0)


def test_it_sleeps_after_a_burst_and_wakes_for_the_next(pair: Companion) -> None:
    for _ in range(3):
        until(lambda: pair._page[companion._STATE] == companion._ASLEEP)
        awake(pair)
        assert os.getpriority(os.PRIO_PROCESS, pair._pid) == 19


@two_processors
def test_the_leader_goes_where_its_client_is_and_rests_anywhere(pair: Companion) -> None:
    everywhere = os.sched_getaffinity(0)
    for _ in range(companion._LOOK + 1):
        pair.turn(os.getpid())
    here = os.sched_getaffinity(0)
    assert len(here) == 1
    assert os.sched_getaffinity(pair._pid) == everywhere - here
    pair.rest()
    assert os.sched_getaffinity(0) == everywhere


def test_two_clients_in_turns_are_not_followed(pair: Companion) -> None:
    everywhere = os.sched_getaffinity(0)
    for turn in range(10 * companion._LOOK):
        pair.turn(1 + turn // companion._LOOK % 2)
    assert os.sched_getaffinity(0) == everywhere


def test_whoever_kills_it_ends_nothing_else(pair: Companion) -> None:
    os.kill(pair._pid, signal.SIGKILL)
    os.waitid(os.P_PID, pair._pid, os.WEXITED | os.WNOWAIT)
    pair._page[companion._STATE] = companion._ASLEEP
    for _ in range(3 * companion._LOOK):
        pair.turn(os.getpid())
        pair._page[companion._STATE] = companion._ASLEEP


def children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found


@two_processors
@pytest.mark.needs("fuse")
@pytest.mark.parametrize("transport", ["direct"])
@pytest.mark.parametrize("end", ["umount", "kill"])
def test_it_ends_with_its_server(mount_union: Callable[..., Union], end: str) -> None:
    union = mount_union("low", "up", options=("spin=10000",))
    server = info.ask(union.path)["pid"]
    helper = os.pidfd_open(children(server)[0])
    try:
        if end == "kill":
            os.kill(server, signal.SIGKILL)
        union.unmount()
        with pytest.raises(ProcessLookupError):
            until(lambda: signal.pidfd_send_signal(helper, 0))
    finally:
        os.close(helper)


@pytest.mark.needs("fuse")
@pytest.mark.parametrize("transport", ["direct"])
def test_none_is_started_where_the_leader_may_not_spin(mount_union: Callable[..., Union]) -> None:
    union = mount_union("low", "up", options=("spin=0",))
    assert children(info.ask(union.path)["pid"]) == []
