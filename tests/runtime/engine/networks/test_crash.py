"""kill -9 between any two requests to the kernel, and many processes at once: nothing is lost, nothing is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from runtime.engine.networks.bridge import BridgeNetwork
from runtime.engine.networks.netlink import Message, NetlinkSocket, Request
from tests.runtime.engine.networks.conftest import HOST, OUTSIDE, Trace
from tests.runtime.engine.networks.netns import Box, links, talk

pytestmark = pytest.mark.needs("netns", "program:nft")

MakeBox = Callable[[], Box]
TakeTrace = Callable[[], Trace]


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that kills itself just before its request `number`; whether it got that far."""
    pid = os.fork()
    if pid == 0:
        try:
            requests = count()
            plain = NetlinkSocket.request

            def request(self: NetlinkSocket, *asked: Request) -> list[Message]:
                if next(requests) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return plain(self, *asked)

            NetlinkSocket.request = request  # type: ignore[method-assign]
            work()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_killed_while_attaching_then_attached_again(
    bridge: BridgeNetwork, box: MakeBox, outside: Box, trace: TakeTrace
) -> None:
    before = trace()
    for number in count():
        first = box()
        killed = killed_at(number, lambda first=first: bridge.attach(first.pid, "one"))  # type: ignore[misc]
        first.kill()
        container = box()
        bridge.attach(container.pid, "one")
        assert talk(container.open_socket(), outside.server(OUTSIDE), OUTSIDE) == HOST, f"killed at request {number}"
        bridge.detach("one")
        assert trace() == before, f"killed at request {number}"
        if not killed:
            assert number > 8
            return


def test_killed_while_attaching_then_cleaned_up(bridge: BridgeNetwork, box: MakeBox, trace: TakeTrace) -> None:
    before = trace()
    for number in count():
        container = box()
        killed = killed_at(number, lambda container=container: bridge.attach(container.pid, "one"))  # type: ignore[misc]
        container.kill()
        bridge.cleanup([])
        assert trace() == before, f"killed at request {number}"
        if not killed:
            return


@pytest.mark.parametrize("finish", [lambda bridge: bridge.detach("one"), lambda bridge: bridge.cleanup([])])
def test_killed_while_detaching(
    bridge: BridgeNetwork, box: MakeBox, trace: TakeTrace, finish: Callable[[BridgeNetwork], None]
) -> None:
    before = trace()
    for number in count():
        container = box()
        bridge.attach(container.pid, "one")
        killed = killed_at(number, lambda: bridge.detach("one"))
        container.kill()
        finish(bridge)
        assert trace() == before, f"killed at request {number}"
        if not killed:
            assert number > 1
            return


def test_a_killed_attach_disturbs_no_other_container(
    bridge: BridgeNetwork, box: MakeBox, outside: Box, trace: TakeTrace
) -> None:
    before = trace()
    other = box()
    bridge.attach(other.pid, "other")
    for number in count():
        container = box()
        killed = killed_at(number, lambda container=container: bridge.attach(container.pid, "one"))  # type: ignore[misc]
        container.kill()
        bridge.cleanup(["other"])
        assert {name for name in links() if name.startswith("aufs")} == {"aufs0", "aufs0v2"}
        assert talk(other.open_socket(), outside.server(OUTSIDE), OUTSIDE) == HOST
        if not killed:
            break
    bridge.detach("other")
    assert trace() == before


def spawn(work: Callable[[], str]) -> tuple[int, int]:
    """A process that writes what `work` returns into the pipe."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, work().encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    return pid, reader


def reap(pid: int, reader: int) -> str:
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return said


def test_eight_processes_attach_at_once(tmp_path: Path, box: MakeBox, trace: TakeTrace) -> None:
    before = trace()
    boxes = [box() for _ in range(8)]

    def attach(number: int) -> str:
        return BridgeNetwork(str(tmp_path)).attach(boxes[number].pid, f"container {number}").address

    running = [spawn(lambda number=number: attach(number)) for number in range(8)]  # type: ignore[misc]
    addresses = [reap(*process) for process in running]
    assert sorted(addresses) == [f"172.30.0.{number}" for number in range(2, 10)]
    server = boxes[0].server(addresses[0])
    assert talk(boxes[7].open_socket(), server, addresses[0]) == addresses[7]

    def detach(number: int) -> str:
        BridgeNetwork(str(tmp_path)).detach(f"container {number}")
        return ""

    running = [spawn(lambda number=number: detach(number)) for number in range(8)]  # type: ignore[misc]
    assert [reap(*process) for process in running] == [""] * 8
    assert trace() == before


def test_comers_and_goers_of_two_roots(tmp_path: Path, box: MakeBox, trace: TakeTrace) -> None:
    """The last of one root goes while the first of another comes, over and over: forwarding is everybody's."""
    before = trace()
    boxes = [box() for _ in range(4)]

    def rounds(number: int) -> str:
        network = BridgeNetwork(str(tmp_path / str(number % 2)))
        for _ in range(4):
            network.attach(boxes[number].pid, f"container {number}")
            with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as switch:
                assert switch.read() == "1\n"
            network.detach(f"container {number}")
        return ""

    running = [spawn(lambda number=number: rounds(number)) for number in range(4)]  # type: ignore[misc]
    assert [reap(*process) for process in running] == [""] * 4
    assert trace() == before
