"""The targets that the figures of a run are held to, and the table that says which are met.

Times and memory are to be at most so many times the other's; throughput at least, and its samples (s/MiB) are inverted
first. The other is kernel overlayfs, or the best of the FUSE peers by its median, unless a target names one peer.
A pure module: no clock, no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.peers import COMMANDS
from benchmarks.report import BASELINE, Row, quantity


class Target(NamedTuple):
    question: str
    measure: str
    peer: float | None  # to the best peer
    baseline: float | None  # to kernel overlayfs
    against: tuple[str, ...] = tuple(COMMANDS)


READ = 1.0, 0.95

TARGETS = (
    Target("throughput", "sequential write", 2.0, 0.95),
    Target("throughput", "sequential read, cold", 1.0, None),
    Target("throughput", "sequential read, warm", *READ),
    Target("throughput", "sequential read, cold, program", *READ),
    Target("throughput", "sequential read, warm, program", *READ),
    Target("throughput", "random read, fresh mount", 1.0, None),
    Target("throughput", "random read, warm", *READ),
    Target("metadata", "create + write 1 kB + close", 0.65, None),
    Target("metadata", "first open + read + close, lower", 0.6, None),
    Target("metadata", "open + read + close, lower", 0.6, None),
    Target("metadata", "first open + read + close, lower program", 0.6, None),
    Target("metadata", "open + read + close, lower program", 0.6, None),
    Target("metadata", "rename", 0.8, None),
    Target("metadata", "unlink", 0.8, None),
    Target("metadata", "mkdir + rmdir", 0.8, None),
    Target("metadata", "unlink, lower", 0.8, None),
    Target("walk", "cold walk, 100 files a directory", 0.9, 3),
    Target("walk", "cold walk, 4 files a directory", 0.5, 3),
    Target("walk", "warm walk, 100 files a directory", 1.0, 1.3),
    Target("walk", "warm walk, 4 files a directory", 0.4, 1.3),
    Target("walk", "cold random lstat", 0.75, None),
    Target("walk", "missing name", 0.9, None),
    Target("walk", "missing name, again", 1.0, None),
    Target("copyup", "first write, 4 KiB", 0.6, 6),
    Target("copyup", "first write, 1 MiB", 0.9, 1.2),
    Target("copyup", "first write, 64 MiB", 1.0, 1.05),
    Target("workloads", "git clone + status + checkout", 0.8, None),
    Target("workloads", "tar x", 0.8, None),
    Target("workloads", "cc", 0.8, None),
    # One copy, as kernel overlayfs has; the tenth is for what the rest of the machine reads meanwhile.
    Target("pagecache", "lower program, 4 mounts", None, 1.1),
    Target("pagecache", "lower file, 4 mounts", 1.05, None),
    Target("memory", "resident after the walk", 1.0, None, ("fuse-overlayfs",)),
)
QUESTIONS = tuple(dict.fromkeys(target.question for target in TARGETS))

HEADINGS = ("work", "best peer", "ours", "ratio to peer (target)", "ratio to overlayfs (target)")


def judged(result: Sequence[Row], ours: str = "fuse-aufs") -> list[tuple[str, ...]]:
    """HEADINGS' columns for every target whose measure `ours` has; one that is missed says MISSED."""
    found = {(row.question, row.measure, row.subject): row for row in result}
    lines = []
    for target in TARGETS:
        rows = {
            subject: found[target.question, target.measure, subject]
            for subject in (ours, BASELINE, *target.against)
            if (target.question, target.measure, subject) in found
        }
        if ours in rows:
            lines.append(_line(target, rows, rows[ours]))
    return lines


def _line(target: Target, rows: Mapping[str, Row], mine: Row) -> tuple[str, ...]:
    peers = [rows[name] for name in target.against if name in rows]
    best = min(peers, key=lambda row: row.median, default=None)
    base = rows.get(BASELINE)
    return (
        f"{target.question}: {target.measure}",
        f"{quantity(best.median, best.unit)} {best.subject}" if best else "-",
        quantity(mine.median, mine.unit),
        _ratio(mine, best, target.peer),
        _ratio(mine, base, target.baseline),
    )


def _ratio(mine: Row, other: Row | None, wanted: float | None) -> str:
    """`0.58 (≤ 0.65)`, `2.31 (≥ 2)`, `0.91 (≤ 0.65 MISSED)`; `4.10` where nothing is wanted, `-` if one is missing."""
    if other is None or not other.median or not mine.median:
        return "-"
    faster_is_more = mine.unit == "s/MiB"
    ratio = other.median / mine.median if faster_is_more else mine.median / other.median
    if wanted is None:
        return f"{ratio:.2f}"
    is_met = ratio >= wanted if faster_is_more else ratio <= wanted
    return f"{ratio:.2f} ({'≥' if faster_is_more else '≤'} {wanted:g}{'' if is_met else ' MISSED'})"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table under HEADINGS, figures to the right."""
    rows = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
