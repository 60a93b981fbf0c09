"""What the prune verbs have in common: the question before, the report after."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from runtime import cli
from runtime.cli import human
from runtime.cli.arguments import Option
from runtime.errors import StateError

if TYPE_CHECKING:
    from runtime.engine.storage.drivers import Away
    from runtime.engine.storage.lost import Snapshot
    from runtime.engine.storage.pruned import Pruned
    from runtime.images.image import Removed

FORCE = Option("force", "f", help="do not ask")


def ask(warning: str, verb: str) -> None:
    """Docker's question; StateError when the answer is not yes."""
    print(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ", end="", flush=True)
    answer = sys.stdin.readline() if sys.stdin is not None else ""
    if answer.strip().lower() not in ("y", "yes"):
        raise StateError(f"{verb} has been cancelled")


class Part(NamedTuple):
    """A title with the lines below it; what was freed; what failed; and drivers that are away."""

    title: str
    lines: Sequence[str]
    freed: int
    failures: Sequence[Exception]
    away: Sequence[Away]


def containers(pruned: Pruned[str]) -> Part:
    return Part("Deleted Containers", *pruned)


def snapshots(pruned: Pruned[Snapshot]) -> Part:
    lines = [f"{snapshot.driver}: {snapshot.key}" for snapshot in pruned.removed]
    return Part("Deleted Snapshots", lines, *pruned[1:])


def images(pruned: Pruned[Removed]) -> Part:
    lines = [
        line
        for removed in pruned.removed
        for line in (
            *(f"untagged: {name}" for name in removed.untagged), *(f"deleted: {name}" for name in removed.deleted)
        )
    ]  # fmt: skip
    return Part("Deleted Images", lines, *pruned[1:])


def report(*parts: Part) -> int:
    """Titles with the lines below them, the sum, a line for each driver that is away and for each failure; the exit
    code."""
    for part in parts:
        if part.lines:
            print(f"{part.title}:", *part.lines, sep="\n", end="\n\n")
    print(f"Total reclaimed space: {human.size(sum(part.freed for part in parts))}", flush=True)
    cli.tell({away.driver: away for part in parts for away in part.away}.values())
    code = 0
    for part in parts:
        for failure in part.failures:
            code = cli.report("", failure)
    return code
