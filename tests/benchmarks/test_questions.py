"""Each question on each union, small: what it measures, and that what it times does what its name says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import copyup, lookup, memory, metadata, pagecache, targets, throughput, walk, workloads
from benchmarks.__main__ import ON_UNIONS
from benchmarks.unions import Union, lower_directory

MEASURES = {
    "throughput": {
        "sequential write", "sequential read, cold", "sequential read, warm", "sequential read, cold, program",
        "sequential read, warm, program", "random read, fresh mount", "random read, warm",
    },
    "metadata": {
        "create + write 1 kB + close", "first open + read + close, lower", "open + read + close, lower",
        "first open + read + close, lower program", "open + read + close, lower program", "rename", "unlink",
        "mkdir + rmdir", "unlink, lower",
    },
    "walk": {
        "cold walk, 100 files a directory", "second walk, 100 files a directory", "warm walk, 100 files a directory",
        "cold walk, 4 files a directory", "second walk, 4 files a directory",
        "warm walk, 4 files a directory", "cold random lstat", "missing name", "missing name, again",
    },
    "workloads": {"git clone + status + checkout", "git clone", "git status", "git checkout", "tar x", "cc"},
    "pagecache": {"lower file, 4 mounts", "lower program, 4 mounts"},
    "memory": {"resident, idle", "resident after the walk", "resident a known inode"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "QUICK_FILES", 5000)
    monkeypatch.setattr(workloads, "QUICK_FILES", (50, 100, 2))


@pytest.mark.parametrize("question", MEASURES)
def test_a_question_measures_every_union(question: str, union: Union, tmp_path: Path) -> None:
    samples = list(ON_UNIONS[question]([union], str(tmp_path), 2, quick=True))
    expected = set(MEASURES[question])
    if not union.copies_up:
        expected.discard("unlink, lower")
    if question == "memory" and not union.has_server:
        expected = set()
    assert {sample.measure for sample in samples} == expected
    assert all(sample.value > 0 for sample in samples)
    assert {(sample.question, sample.subject) for sample in samples} <= {(question, union.name)}
    assert os.listdir(union.work) == [] and os.listdir(tmp_path) == ["union"]


def test_every_target_is_of_a_measure() -> None:
    measured = {(question, measure) for question, measures in MEASURES.items() for measure in measures}
    measured |= {("copyup", f"{change}, {size}") for change in copyup.CHANGES for size in copyup.SIZES}
    assert {(target.question, target.measure) for target in targets.TARGETS} <= measured


def test_the_operations_on_files(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    metadata.create(path)
    assert (tmp_path / "file").read_bytes() == bytes(1000)
    metadata.read(path)
    metadata.rename(path)
    assert os.listdir(tmp_path) == ["filer"]
    metadata.make_and_remove(path)
    assert os.listdir(tmp_path) == ["filer"]


def test_a_lower_file_that_is_unlinked_is_gone(union: Union, tmp_path: Path) -> None:
    with lower_directory(str(tmp_path), lambda directory: metadata.fill(directory, 3)) as lower:
        with union.over(lower) as tree:
            for path in metadata.paths(tree.path, "gone", 3):
                if union.copies_up:
                    os.unlink(path)
                else:
                    with pytest.raises(OSError, match="Read-only file system"):
                        os.unlink(path)
            assert len(os.listdir(f"{tree.path}/gone")) == (0 if union.copies_up else 3)
        assert len(os.listdir(f"{lower}/gone")) == 3


def test_data_goes_through(tmp_path: Path) -> None:
    path = str(tmp_path / "new")
    throughput.write(path, 3 * throughput.MiB)
    assert os.stat(path).st_size == 3 * throughput.MiB
    throughput.read(path)
    throughput.drop_pages(path)
    offsets = throughput.page_offsets(3 * throughput.MiB)
    assert sorted(offsets) == list(range(0, 3 * throughput.MiB, throughput.PAGE))
    assert offsets == throughput.page_offsets(3 * throughput.MiB) != sorted(offsets)
    throughput.read_pages(path, offsets)


@pytest.mark.parametrize("per_directory", walk.PER_DIRECTORY)
def test_a_tree_has_its_files(tmp_path: Path, per_directory: int) -> None:
    walk.fill(str(tmp_path), 200, per_directory)
    assert lookup.walk(str(tmp_path)) == 200 + 200 // per_directory
    assert {len(os.listdir(below)) for below in tmp_path.iterdir()} == {per_directory}


def test_the_repository_has_two_branches(tmp_path: Path) -> None:
    repository = str(tmp_path / "repository.git")
    workloads.make_repository(repository, 100)
    git = ["git", "-C", repository]
    files = subprocess.check_output([*git, "ls-tree", "-r", "--name-only", "main"], text=True).splitlines()
    changed = subprocess.check_output([*git, "diff", "--name-only", "main", "other"], text=True).splitlines()
    assert (len(files), len(changed)) == (100, 20)
    subprocess.run([*git, "fsck", "--strict"], check=True)


def test_the_archive_and_the_sources_have_their_files(tmp_path: Path) -> None:
    archive = str(tmp_path / "archive.tar")
    workloads.make_archive(archive, 200)
    listed = subprocess.check_output(["tar", "-tf", archive], text=True).splitlines()
    assert len(listed) == 200 and len({os.path.dirname(name) for name in listed}) == 100
    sources = tmp_path / "sources"
    sources.mkdir()
    workloads.make_sources(str(sources), 3)
    assert sorted(path.name for path in sources.glob("*.c")) == ["0.c", "1.c", "2.c"]
    assert len(list(sources.glob("*/*.h"))) == workloads.HEADERS


def test_the_memory_of_a_process_has_that_of_its_children() -> None:
    script = "bytearray(64 << 20); import sys; print(flush=True); sys.stdin.read()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'keep = {script}'])"
    command: Sequence[str] = ["/usr/bin/env", "python3", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdout.readline()
        assert 64 << 20 < memory.resident(parent.pid) < 256 << 20
        parent.stdin.close()


@pytest.mark.needs("tmpfs")
def test_cached_counts_what_is_written(tmp_path: Path) -> None:
    with memory.tmpfs(str(tmp_path)):
        before = pagecache.cached()
        throughput.fill(str(tmp_path), 64 << 20, ["file"])
        assert pagecache.cached() - before > 48 << 20  # the machine's other files come and go
