"""What the prune verbs have in common: the question before, the report after."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runtime.cli import human
from runtime.cli.options import Option
from runtime.errors import StateError

FORCE = Option("force", "f", help="do not ask")


def ask(warning: str, verb: str) -> None:
    """Docker's question; StateError when the answer is not yes."""
    print(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ", end="", flush=True)
    answer = sys.stdin.readline() if sys.stdin is not None else ""
    if answer.strip().lower() not in ("y", "yes"):
        raise StateError(f"{verb} has been cancelled")


def report(parts: Sequence[tuple[str, Sequence[str]]], freed: int) -> None:
    """Titles with the lines below them, and the sum."""
    for title, lines in parts:
        if lines:
            print(f"{title}:", *lines, sep="\n", end="\n\n")
    print(f"Total reclaimed space: {human.size(freed)}")
