"""How events are shown, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re

import pytest

from runtime.cli.progress import Lines, Screen, Silent, progress
from runtime.events import Event, Message, Notice, Progress

TOLD: tuple[Event, ...] = (
    Message("latest: Pulling from x"),
    Progress("a", "Pulling fs layer"),
    Progress("b", "Pulling fs layer"),
    Progress("a", "Downloading", 500, 1000),
    Notice("mirror m: down; going on without it"),
    Progress("b", "Pulling fs layer"),
    Progress("a", "Downloading", 900, 1000),
    Progress("a", "Download complete"),
    Message("Digest: y"),
)


def seen(drawn: str) -> list[str]:
    """What is seen in the end, of text with our two escapes: up N lines, and clear from here on."""
    lines = [""]
    for up, text, end in re.findall(r"\x1b\[(\d+)A|\x1b\[J|([^\n\x1b]+)|(\n)", drawn):
        if up:
            del lines[len(lines) - 1 - int(up) :]
            lines.append("")
        lines[-1] += text
        if end:
            lines.append("")
    return [line for line in lines if line]


def test_a_pipe_has_a_line_for_each_change() -> None:
    stream = io.StringIO()
    with progress(stream) as shown:
        assert isinstance(shown, Lines)
        for event in TOLD:
            shown(event)
    assert stream.getvalue().splitlines() == [
        "latest: Pulling from x", "a: Pulling fs layer", "b: Pulling fs layer", "mirror m: down; going on without it",
        "a: Download complete", "Digest: y",
    ]  # fmt: skip


def test_a_terminal_has_a_line_for_each_item() -> None:
    stream = io.StringIO()
    with Screen(stream) as shown:
        for event in TOLD:
            shown(event)
    assert seen(stream.getvalue()) == [
        "latest: Pulling from x", "mirror m: down; going on without it", "a: Download complete", "b: Pulling fs layer",
        "Digest: y",
    ]  # fmt: skip


def test_what_was_not_drawn_yet_is_drawn_in_the_end() -> None:
    stream = io.StringIO()
    with Screen(stream) as shown:
        for done in range(1, 10):
            shown(Progress("a", "Downloading", done, 10))  # more often than it is drawn
    assert seen(stream.getvalue())[0].endswith("9B/10B")


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    with progress(stream, quiet=True) as shown:
        assert type(shown) is Silent
        for event in TOLD:
            shown(event)
    assert stream.getvalue() == ""


def test_more_layers_than_rows() -> None:
    """Only the last are drawn: what has scrolled away cannot be drawn anew."""
    stream = io.StringIO()
    shown = Screen(stream)
    for number in range(100):
        shown(Progress(f"{number}", "Pulling fs layer"))
    shown(Notice("so far"))
    assert all(int(up) <= 23 for up in re.findall(r"\x1b\[(\d+)A", stream.getvalue()))
    assert stream.getvalue().endswith("99: Pulling fs layer\n")


@pytest.mark.parametrize(
    ("current", "total", "bar"),
    [
        (0, 1000, f"[>{' ' * 49}]  0B/1kB"),
        (500, 1000, f"[{'=' * 25}>{' ' * 24}]  500B/1kB"),
        (123456789, 123456789, f"[{'=' * 50}]  123.5MB/123.5MB"),
        (5 * 10**12, 10**13, f"[{'=' * 25}>{' ' * 24}]  5TB/10TB"),
    ],
)
def test_bars(current: int, total: int, bar: str) -> None:
    stream = io.StringIO()
    Screen(stream)(Progress("a", "Pushing", current, total))
    assert stream.getvalue().endswith(f"a: Pushing  {bar}"[:79] + "\n")


def test_a_process_without_standard_streams_says_nothing() -> None:
    with progress(None) as shown:
        shown(Message("latest: Pulling from x"))
