"""Rows to the table of targets, and what a recorded run looks like: exact, since nothing here touches a clock."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import record, report, targets
from benchmarks.timing import Sample


def create(subject: str, seconds: float) -> Sample:
    return Sample("metadata", "create + write 1 kB + close", subject, seconds)


def write(subject: str, rate: float) -> Sample:
    return Sample("throughput", "sequential write", subject, 1 / rate, "s/MiB")


def judged(*samples: Sample, ours: str = "fuse-aufs") -> list[tuple[str, ...]]:
    return targets.judged(report.rows(samples), ours)


def test_times_are_at_most_the_best_peers() -> None:
    samples = create("overlay2", 16e-6), create("mergerfs", 240e-6), create("unionfs-fuse", 144e-6)
    assert judged(*samples, create("fuse-aufs", 72e-6)) == [
        ("metadata: create + write 1 kB + close", "144 µs unionfs-fuse", "72.0 µs", "0.50 (≤ 0.65)", "4.50")
    ]
    assert judged(*samples, create("fuse-aufs", 144e-6))[0][3] == "1.00 (≤ 0.65 MISSED)"


def test_throughput_is_at_least_the_best_peers() -> None:
    samples = write("overlay2", 3000), write("mergerfs", 1000), write("fuse-overlayfs", 800)
    assert judged(*samples, write("fuse-aufs", 2500)) == [
        ("throughput: sequential write", "1000 MiB/s mergerfs", "2500 MiB/s", "2.50 (≥ 2)", "0.83 (≥ 0.95 MISSED)")
    ]


def test_a_target_may_name_its_peer() -> None:
    samples = [
        Sample("memory", "resident after the walk", subject, size * 2.0**20, "B")
        for subject, size in (("fuse-aufs", 300), ("fuse-overlayfs", 290), ("mergerfs", 100))
    ]
    (line,) = judged(*samples)
    assert line[1:] == ("290.0 MiB fuse-overlayfs", "300.0 MiB", "1.03 (≤ 1 MISSED)", "-")


def test_what_was_not_measured_is_not_judged() -> None:
    assert judged(create("overlay2", 1.0), create("mergerfs", 1.0)) == []
    (line,) = judged(create("fuse-aufs:pyfuse3", 1.0), ours="fuse-aufs:pyfuse3")
    assert line[1:] == ("-", "1.00 s", "-", "-")


def test_a_record_is_a_document_and_a_page(tmp_path: Path) -> None:
    runs = [
        report.Run("tmpfs", [create("overlay2", 16e-6), create("fuse-aufs", 72e-6)], {"mergerfs": "is not installed"}),
        report.Run("ext4", [write("overlay2", 3000)], {}),
    ]
    record.write("name", {"kernel": "6.1", "cores": 2}, runs, str(tmp_path / "results"))
    read = json.loads((tmp_path / "results/name.json").read_text())
    assert [run["backing"] for run in read["runs"]] == ["tmpfs", "ext4"]
    page = (tmp_path / "results/name.md").read_text()
    assert page.startswith("# name\n\n- kernel: 6.1\n- cores: 2\n\n## On tmpfs\n\nmergerfs was not measured: is not")
    assert "| metadata: create + write 1 kB + close | - | 72.0 µs | - | 4.50 |" in page
    assert "\n## On ext4\n" in page and "3000 MiB/s" in page
