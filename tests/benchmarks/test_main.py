"""`python -m benchmarks` as a command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from benchmarks import copyup, facts, lookup
from tests.mounting import Union
from unionfs.linux import mounts

ROOT = Path(__file__).parents[2]

COMMAND = [sys.executable, "-m", "benchmarks"]


def run(*arguments: str, env: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )


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
    (only,) = read["runs"]
    assert read["facts"]["kernel"] and only["unavailable"] == {}
    assert only["backing"] == facts.filesystem(str(tmp_path))
    measures = {(row["subject"], row["measure"]): row for row in only["results"]}
    expected = {f"{change}, {size}" for change in copyup.CHANGES for size in copyup.QUICK} | {"new layer"}
    kinds = ["new layer", "hit", "hit again", "miss", *(["cold walk"] if lookup.can_drop_caches() else [])]
    expected |= {f"{kind}, {depth} deep" for kind in kinds for depth in lookup.QUICK}
    expected |= {"image", "new container", "first change", "disk, each", "memory, 4 read", "memory, 4 run", "remove"}
    assert {measure for subject, measure in measures if subject == "vfs"} == expected
    assert {measure for subject, measure in measures if subject == "overlay2"} > expected
    questions = {row["question"] for row in only["results"]}
    assert questions == {"copyup", "lookup", "containers", "throughput", "metadata", "walk", "workloads", "pagecache"}
    assert all(row["minimum"] > 0 for (_, measure), row in measures.items() if measure != "disk, each")
    assert all(row["ratio"] == 1.0 for (subject, _), row in measures.items() if subject == "overlay2")
    assert "first write, 4 KiB" in done.stdout and "copyup" in done.stdout


@pytest.mark.needs("overlay", "tmpfs-xattr", "fuse")
def test_targets_are_judged_on_both_file_systems(tmp_path: Path) -> None:
    chosen = ("--driver", "overlay2", "--driver", "fuse-aufs", "--question", "walk", "--question", "metadata")
    done = run("--targets", "--quick", "--rounds", "1", *chosen, "--work", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    judged = done.stdout[done.stdout.index("Median of") :]
    for backing in ("tmpfs", facts.filesystem(str(tmp_path))):
        assert f"On {backing}:" in judged
    assert judged.count("| walk: cold random lstat | - |") == 2
    assert "workloads" not in judged


@pytest.mark.needs("overlay")
def test_a_run_may_be_kept_to_one_processor(tmp_path: Path) -> None:
    document = tmp_path / "result.json"
    chosen = ("--driver", "overlay2", "--question", "metadata", "--quick", "--processors", "1")
    done = run(*chosen, "--work", str(tmp_path), "--json", str(document))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(document.read_text())["facts"]["cores"] == 1


@pytest.mark.needs("overlay")
def test_a_question_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    bin_directory, work = tmp_path / "bin", tmp_path / "work"
    bin_directory.mkdir()
    work.mkdir()
    (bin_directory / "tar").write_text("#!/bin/sh\nexit 7\n")
    (bin_directory / "tar").chmod(0o755)
    chosen = ("--driver", "overlay2", "--question", "workloads", "--question", "metadata", "--quick", "--rounds", "1")
    path = f"{bin_directory}:{os.environ['PATH']}"
    done = run(*chosen, "--work", str(work), env={**os.environ, "PATH": path})
    assert done.returncode == 1
    assert done.stderr.startswith("benchmarks: workloads on ") and "exit status 7" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "git clone" in done.stdout and "mkdir + rmdir" in done.stdout
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("--driver", "zfs3"), "'zfs3'"), (("--rounds", "0"), "'0'"), (("--question", "why"), "'why'")],
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


@pytest.mark.needs("fuse")
def test_a_run_does_not_hold_what_others_have_mounted(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    union = mount_union("lower", "upper")
    script = f"from benchmarks import isolation; isolation.isolate({str(tmp_path)!r}); print(flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "\n"
        assert mounts.mounted_at(union.path) is not None
        assert union.path not in {point.target for point in mounts.mountinfo(process.pid)}
        union.unmount()  # which waits for the server's end
        process.stdin.write("\n")
    assert process.returncode == 0
