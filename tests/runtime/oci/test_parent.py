"""What the waiting side makes of the messages, in every order that a scheduler can bring them in."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from runtime.errors import CommandNotExecutable, CommandNotFound, ContainerError
from runtime.oci import child, parent, spec, sync
from tests.runtime.oci.conftest import process

Message = Callable[[sync.Channel], None]
Make = Callable[..., parent.Birth]

PLAN = child.Plan(
    process=spec.parse_process(process("true")), config=None, cgroup=None, root_steps=None, root=None, files=None,
    new=0, new_cgroup=False, joins=(), stdio=None,
)  # fmt: skip


def _ready(channel: sync.Channel) -> None:
    channel.send(sync.READY)


def _fault(channel: sync.Channel) -> None:
    sync.Fault(sync.FAILED, "do it", "because").send(channel)


@pytest.fixture
def birth() -> Iterator[Callable[..., parent.Birth]]:
    """`birth(message, …, joins=…)` is one whose processes have said these things, and ended."""
    children: list[subprocess.Popen[bytes]] = []

    def make(*messages: Callable[[sync.Channel], None], joins: bool) -> parent.Birth:
        ours, theirs = sync.Channel.pair()
        for send in messages:
            send(theirs)
        theirs.close()
        children.append(subprocess.Popen(["true"]))
        first = children[-1].pid
        return parent.Birth(PLAN._replace(joins=((0, 0),) if joins else ()), ours, first, os.pidfd_open(first))

    yield make
    for each in children:
        each.wait()


def _born(channel: sync.Channel) -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    channel.send(sync.BORN, str(child))


def _hear(birth: parent.Birth) -> parent.Child | None:
    """What comes of it, when nothing more is to be heard."""
    try:
        while (child := birth.advance()) is None:
            pass
        return child
    finally:
        birth.reap()


@pytest.mark.parametrize("order", list(itertools.permutations([_born, _ready])))
def test_who_is_born_may_be_ready_before_that_is_said(birth: Make, order: tuple[Message, ...]) -> None:
    begun = birth(*order, joins=True)
    first = begun._first
    child = _hear(begun)
    assert child is not None and child.pid != first
    os.waitpid(child.pid, 0)
    os.close(child.pidfd)
    child.channel.close()


@pytest.mark.parametrize("order", list(itertools.permutations([_born, _fault])))
def test_a_fault_is_told_and_whoever_is_known_is_collected(birth: Make, order: tuple[Message, ...]) -> None:
    begun = birth(*order, joins=True)
    with pytest.raises(ContainerError, match=r"^cannot do it: because$"):
        _hear(begun)
    assert begun.unreaped == {}


@pytest.mark.parametrize(("said", "joins"), [((), False), ((_born,), True), ((_ready,), True)])
def test_silence_is_not_readiness(birth: Make, said: tuple[Message, ...], joins: bool) -> None:
    with pytest.raises(ContainerError, match=r"^cannot start the container: its process ended with 0$"):
        _hear(birth(*said, joins=joins))


def test_readiness_is_enough_where_nothing_is_joined(birth: Make) -> None:
    child = _hear(birth(_ready, joins=False))
    assert child is not None
    os.waitpid(child.pid, 0)
    os.close(child.pidfd)
    child.channel.close()


@pytest.mark.parametrize(
    ("meaning", "kind"),
    [
        (sync.FAILED, ContainerError),
        (sync.NOT_FOUND, CommandNotFound),
        (sync.NOT_EXECUTABLE, CommandNotExecutable),
    ],
)
def test_a_fault_is_a_sentence_of_its_kind(meaning: str, kind: type[ContainerError]) -> None:
    with pytest.raises(kind, match=r"^cannot do it: because$") as refusal:
        parent.refuse((meaning, "do it", "because"))
    assert type(refusal.value) is kind


_STRAYS = """
import os
from runtime.oci.parent import collect_strays
from unionfs.linux import consts, processes
def child(flags):
    reader, writer = os.pipe()
    pid, pidfd = processes.clone3(flags)
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    return pid, pidfd, writer
def end(one):
    os.close(one[2])
    os.waitid(os.P_PIDFD, one[1], os.WEXITED | os.WNOWAIT)
ours, known, stray = child(0), child(consts.CLONE_NEWPID), child(consts.CLONE_NEWPID)
assert collect_strays({known[0]})
for one in (stray, known, ours):  # each has the pipes of those before it
    end(one)
assert not collect_strays({known[0]})
os.waitpid(ours[0], 0), os.waitpid(known[0], 0)
try:
    os.waitpid(stray[0], 0)
except ChildProcessError:
    print("collected")
"""


@pytest.mark.needs("root")
def test_who_was_never_told_of_is_collected_and_nobody_else() -> None:
    done = subprocess.run([sys.executable, "-c", _STRAYS], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "collected\n"), done.stderr
