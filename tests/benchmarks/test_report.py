"""Samples to rows, table and JSON: exact, since nothing here touches a clock."""

from __future__ import annotations

import json

import pytest

from benchmarks import report
from benchmarks.timing import Sample, per_operation, rotated


def samples(subject: str, *seconds: float, measure: str = "hit, 1 deep") -> list[Sample]:
    return [Sample("lookup", measure, subject, value) for value in seconds]


def test_a_row_has_the_median_the_quartiles_and_the_ratio_to_overlay2() -> None:
    taken = [*samples("overlay2", 1.0, 2.0, 3.0), *samples("vfs", 1.0, 1.0, 9.0)]
    overlay2, vfs = report.rows(taken)
    assert overlay2 == report.Row("lookup", "hit, 1 deep", "overlay2", 3, 1.0, 1.5, 2.0, 2.5, 1.0)
    assert vfs == report.Row("lookup", "hit, 1 deep", "vfs", 3, 1.0, 1.0, 1.0, 5.0, 0.5)


def test_one_round_is_its_own_spread() -> None:
    (row,) = report.rows(samples("overlay2", 2.0))
    assert (row.minimum, row.lower_quartile, row.median, row.upper_quartile) == (2.0, 2.0, 2.0, 2.0)


def test_without_overlay2_there_is_no_ratio() -> None:
    (row,) = report.rows(samples("vfs", 1.0, 2.0))
    assert row.ratio is None
    assert report.cell(row).rstrip().endswith("%")


def test_interleaved_rounds_are_brought_together() -> None:
    taken = samples("vfs", 1.0) + samples("overlay2", 2.0) + samples("overlay2", 4.0) + samples("vfs", 3.0)
    assert [(row.subject, row.rounds, row.median) for row in report.rows(taken)] == [
        ("vfs", 2, 2.0), ("overlay2", 2, 3.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.5e-8, "0.01 µs"), (1.234e-6, "1.23 µs"), (45.67e-6, "45.7 µs"), (999e-6, "999 µs"), (1e-3, "1.00 ms"),
     (0.1234, "123 ms"), (1.0, "1.00 s"), (75.0, "75.0 s")],
)  # fmt: skip
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.1234, "s", "123 ms"), (1 / 2048, "s/MiB", "2048 MiB/s"), (823.4, "B", "823 B"), (3 << 19, "B", "1.5 MiB"),
     (1.004, "copies", "1.00 copies")],
)  # fmt: skip
def test_quantities_are_in_their_unit(value: float, unit: str, text: str) -> None:
    assert report.quantity(value, unit) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(None, ""), (0.001, "<0.01x"), (0.5, "0.50x"), (12.34, "12.3x"), (123.4, "123x")]
)
def test_ratios_have_three_digits_at_most(ratio: float | None, text: str) -> None:
    assert report.times(ratio) == text


def test_the_table_puts_the_baseline_first_and_marks_what_was_not_measured() -> None:
    taken = [
        *samples("vfs", 10e-6), *samples("overlay2", 20e-6),
        *samples("overlay2", 30e-6, measure="miss, 1 deep"),
    ]  # fmt: skip
    assert report.table(report.rows(taken)).splitlines() == [
        "lookup                   overlay2                  vfs",
        "------------  -------------------  -------------------",
        "hit, 1 deep   20.0 µs  ±0%  1.00x  10.0 µs  ±0%  0.50x",
        "miss, 1 deep  30.0 µs  ±0%  1.00x                    -",
    ]


def test_the_document_keeps_every_sample() -> None:
    taken = samples("overlay2", 1.0, 2.0)
    document = report.document({"kernel": "6.1"}, [report.Run("ext4", taken, {"vfs": "has no room"})])
    read = json.loads(json.dumps(document))
    assert read["facts"] == {"kernel": "6.1"}
    (run,) = read["runs"]
    assert run["backing"] == "ext4" and run["unavailable"] == {"vfs": "has no room"}
    assert [(sample["value"], sample["unit"]) for sample in run["samples"]] == [(1.0, "s"), (2.0, "s")]
    assert run["results"][0]["median"] == 1.5 and run["results"][0]["ratio"] == 1.0


def test_every_item_is_timed_once() -> None:
    seen: list[int] = []
    assert per_operation(seen.append, [1, 2, 3]) > 0
    assert seen == [1, 2, 3]


def test_rounds_begin_with_another_subject_each() -> None:
    assert [rotated("abc", turn)[0] for turn in range(-1, 4)] == ["c", "a", "b", "c", "a"]
    assert rotated("abc", 4) == ["b", "c", "a"]
    assert rotated([], 3) == []
