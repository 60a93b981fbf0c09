"""What the waiting side makes of the messages, in every order that a scheduler can bring them in."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from runtime.errors import CommandNotExecutable, CommandNotFound, ContainerError
from runtime.oci import parent, sync


def _born(channel: sync.Channel) -> None:
    channel.send(sync.BORN, "77")


def _ready(channel: sync.Channel) -> None:
    channel.send(sync.READY)


def _fault(channel: sync.Channel) -> None:
    sync.Fault(sync.FAILED, "do it", "because").send(channel)


def _hear(*messages: Callable[[sync.Channel], None], joins: bool) -> parent._Heard:
    ours, theirs = sync.Channel.pair()
    for send in messages:
        send(theirs)
    theirs.close()
    heard = parent._listen(ours, joins=joins)
    ours.close()
    return heard


@pytest.mark.parametrize("order", list(itertools.permutations([_born, _ready])))
def test_who_is_born_may_be_ready_before_that_is_said(order: tuple[Callable[[sync.Channel], None], ...]) -> None:
    assert _hear(*order, joins=True) == parent._Heard(ready=True, born=77)


@pytest.mark.parametrize("order", list(itertools.permutations([_born, _fault])))
def test_a_fault_does_not_hide_who_is_to_be_collected(order: tuple[Callable[[sync.Channel], None], ...]) -> None:
    assert _hear(*order, joins=True) == parent._Heard(born=77, fault=(sync.FAILED, "do it", "because"))


def test_silence_is_not_readiness() -> None:
    assert _hear(joins=False) == parent._Heard()
    assert _hear(_born, joins=True) == parent._Heard(born=77)
    assert _hear(_ready, joins=True) == parent._Heard()
    assert _hear(_ready, joins=False) == parent._Heard(ready=True)


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
