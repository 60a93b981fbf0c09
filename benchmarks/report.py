"""Samples in, a table and a JSON document out: medians with their spread, and ratios to kernel overlayfs of this run.

A pure module: no clock, no file.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.facts import Facts
from benchmarks.timing import Sample

BASELINE = "overlay2"


class Row(NamedTuple):
    """One measure of one subject over all rounds, in its sample's unit; the quartiles span the middle half."""

    question: str
    measure: str
    subject: str
    rounds: int
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    ratio: float | None  # median to the baseline's median; None where the baseline was not measured
    unit: str = "s"


def rows(samples: Sequence[Sample], baseline: str = BASELINE) -> list[Row]:
    """A row for each question, measure and subject, in the order in which each first appears."""
    grouped: dict[tuple[str, str], dict[str, list[float]]] = {}
    units = {}
    for question, measure, subject, value, unit in samples:
        grouped.setdefault((question, measure), {}).setdefault(subject, []).append(value)
        units[question, measure] = unit
    result = []
    for (question, measure), by_subject in grouped.items():
        base = statistics.median(by_subject[baseline]) if baseline in by_subject else None
        for subject, values in by_subject.items():
            # quantiles() needs two values; one round is its own quartiles
            lower, median, upper = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
            ratio = median / base if base else None
            spread = (len(values), min(values), lower, median, upper)
            result.append(Row(question, measure, subject, *spread, ratio, units[question, measure]))
    return result


class Run(NamedTuple):
    """What was measured on one backing file system: every sample in the order taken, and what could not be measured."""

    backing: str  # "ext4"
    samples: list[Sample]
    unavailable: dict[str, str]  # subject -> why


def document(facts: Facts, runs: Sequence[Run]) -> object:
    """The JSON document: the machine, and each run with its rows and samples."""
    return {
        "facts": facts,
        "baseline": BASELINE,
        "runs": [
            {
                "backing": run.backing,
                "results": [row._asdict() for row in rows(run.samples)],
                "samples": [sample._asdict() for sample in run.samples],
                "unavailable": run.unavailable,
            }
            for run in runs
        ],
    }


def quantity(value: float, unit: str) -> str:
    """A value in its unit, three digits at most where they are ours to choose."""
    if unit == "s/MiB":
        return f"{1 / value:.0f} MiB/s"
    if unit == "B":
        return f"{value / (1 << 20):.1f} MiB" if value >= 1 << 20 else f"{value:.0f} B"
    return duration(value) if unit == "s" else f"{value:.2f} {unit}"


def duration(seconds: float) -> str:
    """Three digits and a unit: 0.0000123 -> "12.3 µs"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale or unit == "µs":
            value = seconds / scale
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError("unreachable: µs takes everything")


def cell(row: Row) -> str:
    """`median ±half the interquartile range in per cent, ratio`: "38.1 µs ±4%  2.31x"."""
    spread = (row.upper_quartile - row.lower_quartile) / 2 / row.median if row.median else 0.0
    return f"{quantity(row.median, row.unit)} {f'±{spread:.0%}':>4} {times(row.ratio):>6}"


def times(ratio: float | None) -> str:
    """Three digits at most: 0.001 -> "<0.01x", 2.5 -> "2.50x", 123.4 -> "123x"; "" for None."""
    if ratio is None:
        return ""
    if ratio < 0.01:
        return "<0.01x"
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}x"


def table(result: Sequence[Row]) -> str:
    """One table per question, subjects as columns, the baseline first; a measure that a subject lacks is `-`."""
    blocks = []
    for question in dict.fromkeys(row.question for row in result):
        mine = [row for row in result if row.question == question]
        subjects = sorted(dict.fromkeys(row.subject for row in mine), key=lambda name: name != BASELINE)
        cells = {(row.measure, row.subject): cell(row) for row in mine}
        lines = [[question, *subjects]]
        for measure in dict.fromkeys(row.measure for row in mine):
            lines.append([measure, *(cells.get((measure, subject), "-") for subject in subjects)])
        widths = [max(len(line[column]) for line in lines) for column in range(len(subjects) + 1)]
        ruler = ["-" * width for width in widths]
        blocks.append("\n".join(_aligned(line, widths) for line in [lines[0], ruler, *lines[1:]]))
    return "\n\n".join(blocks)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    """The first column to the left, the others to the right."""
    padded = (text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
    return "  ".join([line[0].ljust(widths[0]), *padded]).rstrip()
