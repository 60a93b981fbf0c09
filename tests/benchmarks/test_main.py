"""`python -m benchmarks` as a command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import copyup, lookup

ROOT = Path(__file__).parents[2]

COMMAND = [sys.executable, "-m", "benchmarks"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.needs("overlay")
def test_a_quick_run_measures_everything_and_leaves_nothing(tmp_path: Path) -> None:
    document = tmp_path / "result.json"
    work = tmp_path / "work"
    work.mkdir()
    chosen = ("--driver", "vfs", "--driver", "overlay2")
    done = run("--quick", "--rounds", "2", *chosen, "--work", str(work), "--json", str(document))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(work.iterdir()) == []
    read = json.loads(document.read_text())
    assert read["facts"]["kernel"] and read["unavailable"] == {}
    measures = {(row["subject"], row["measure"]): row for row in read["results"]}
    expected = {f"{change}, {size}" for change in copyup.CHANGES for size in copyup.QUICK} | {"new layer"}
    kinds = ["new layer", "hit", "hit again", "miss", *(["cold walk"] if lookup.can_drop_caches() else [])]
    expected |= {f"{kind}, {depth} deep" for kind in kinds for depth in lookup.QUICK}
    assert set(measures) == {(subject, measure) for subject in ("vfs", "overlay2") for measure in expected}
    assert all(row["rounds"] == 2 and row["minimum"] > 0 for row in measures.values())
    assert all(row["ratio"] == 1.0 for (subject, _), row in measures.items() if subject == "overlay2")
    assert len(read["samples"]) == 2 * len(measures)
    assert "first write, 4 KiB" in done.stdout and "copyup" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("--driver", "zfs"), "'zfs'"), (("--rounds", "0"), "'0'"), (("--question", "why"), "'why'")],
)
def test_bad_arguments_are_usage_errors(arguments: tuple[str, ...], named: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert named in done.stderr.splitlines()[-1]


def test_a_missing_work_directory_is_named(tmp_path: Path) -> None:
    done = run("--driver", "vfs", "--work", str(tmp_path / "missing"))
    assert done.returncode == 1
    assert done.stderr.startswith("benchmarks: ") and "missing" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.needs("overlay")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_leaves_nothing(tmp_path: Path, number: signal.Signals, status: int) -> None:
    command = [*COMMAND, "--quick", "--rounds", "1000", "--driver", "overlay2", "--work", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("date ")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, ""), out + err
    assert list(tmp_path.iterdir()) == []
