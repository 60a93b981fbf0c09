"""What the prune verbs have in common: the question before, the report after."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime import cli
from runtime.cli import human
from runtime.cli.arguments import Option
from runtime.errors import StateError

if TYPE_CHECKING:
    from runtime.engine.containers.prune import Pruned

FORCE = Option("force", "f", help="do not ask")


def ask(warning: str, verb: str) -> None:
    """Docker's question; StateError when the answer is not yes."""
    print(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ", end="", flush=True)
    answer = sys.stdin.readline() if sys.stdin is not None else ""
    if answer.strip().lower() not in ("y", "yes"):
        raise StateError(f"{verb} has been cancelled")


def report(parts: Sequence[tuple[str, Pruned]]) -> int:
    """Titles with the lines below them, the sum, a line for each driver that is away and for each failure; the exit
    code."""
    for title, pruned in parts:
        if pruned.lines:
            print(f"{title}:", *pruned.lines, sep="\n", end="\n\n")
    print(f"Total reclaimed space: {human.size(sum(pruned.freed for _, pruned in parts))}", flush=True)
    cli.tell({away.driver: away for _, pruned in parts for away in pruned.away}.values())
    code = 0
    for _, pruned in parts:
        for failure in pruned.failures:
            code = cli.report("", failure)
    return code
