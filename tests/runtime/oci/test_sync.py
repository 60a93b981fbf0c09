"""The messages between parent and child."""

from __future__ import annotations

import os

import pytest

from runtime.oci import sync


def test_messages_keep_their_borders_and_fields() -> None:
    ours, theirs = sync.Channel.pair()
    theirs.send(sync.READY)
    sync.Fault(sync.FAILED, "mount proc on /proc", "No such file (ü\udcff)").send(theirs)
    assert ours.receive() == (sync.READY, (), None)
    kind, fields, _ = ours.receive()
    assert (kind, sync.Fault(*fields)) == (
        sync.FAULT, (sync.FAILED, "mount proc on /proc", "No such file (ü\udcff)"),
    )  # fmt: skip
    theirs.close()
    assert ours.receive().kind == b""
    with pytest.raises(BrokenPipeError):
        ours.send(sync.START)
    ours.close()


def test_a_long_reason_is_cut_and_not_lost() -> None:
    ours, theirs = sync.Channel.pair()
    sync.Fault(sync.FAILED, "step", "x" * 100_000).send(theirs)
    assert sync.Fault(*ours.receive().fields).reason.startswith("xxx")
    ours.close()
    theirs.close()


def test_a_long_field_does_not_take_the_next_ones_place() -> None:
    left, right = sync.Channel.pair()
    sync.Fault(sync.NOT_FOUND, f"run {'a' * 9000!r}", "not found in $PATH").send(left)
    meaning, step, reason = right.receive().fields
    assert (meaning, reason) == (sync.NOT_FOUND, "not found in $PATH")
    assert step.startswith("run 'aaa")
    left.close()
    right.close()


def test_a_descriptor_travels() -> None:
    ours, theirs = sync.Channel.pair()
    reader, writer = os.pipe()
    theirs.send(sync.CONSOLE, fd=reader)
    os.close(reader)
    received = ours.receive()
    assert received.kind == sync.CONSOLE and received.fd is not None
    assert not os.get_inheritable(received.fd)
    os.write(writer, b"x")
    assert os.read(received.fd, 1) == b"x"
    for fd in (writer, received.fd):
        os.close(fd)
    ours.close()
    theirs.close()


def test_an_adopted_end_is_the_same_end() -> None:
    ours, theirs = sync.Channel.pair()
    again = sync.Channel.adopt(theirs.detach())
    ours.send(sync.START)
    assert again.receive().kind == sync.START
    ours.close()
    assert again.receive().kind == b""
    again.close()
