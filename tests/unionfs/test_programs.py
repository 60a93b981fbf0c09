"""Programs as people run them, on the mount: git, a compiler and make, tar, SQLite in WAL mode."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounting import Union
from tests.trees import assert_same, build, read

pytestmark = [pytest.mark.needs("fuse", "trusted-xattr")]

IDENTITY = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}


def run(directory: str, *command: str) -> str:
    done = subprocess.run(command, cwd=directory, env={**os.environ, **IDENTITY}, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def make_repository(path: str) -> None:
    """Forty files in directories, five commits."""
    build(path, {f"dir{n % 4}": {f"file{m}": f"line {m}\n" * 50 for m in range(10)} for n in range(4)})
    run(path, "git", "init", "-q", "-b", "main")
    for turn in range(5):
        (Path(path) / "dir0" / "file0").write_text(f"turn {turn}\n")
        run(path, "git", "add", ".")
        run(path, "git", "commit", "-q", "-m", f"turn {turn}")


@pytest.mark.needs("program:git")
def test_git(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """A repository of the lower branch is changed, collected and cloned; a remount later it is whole."""
    make_repository(str(tmp_path / "low" / "repository"))
    union = mount_union("low", "up")
    old, new = f"{union.path}/repository", f"{union.path}/clone"
    assert run(old, "git", "status", "--porcelain") == ""
    run(union.path, "git", "clone", "-q", "repository", "clone")
    run(new, "git", "checkout", "-q", "-b", "topic")
    shutil.rmtree(f"{new}/dir1")
    os.rename(f"{new}/dir2", f"{new}/dir5")
    Path(f"{new}/dir0/file0").write_text("changed\n")
    assert len(run(new, "git", "status", "--porcelain").splitlines()) == 22
    run(new, "git", "add", "-A")
    run(new, "git", "commit", "-q", "-m", "change")
    run(new, "git", "gc", "-q", "--prune=now")
    run(old, "git", "fetch", "-q", new, "topic:topic")
    run(old, "git", "checkout", "-q", "topic")
    run(old, "git", "gc", "-q")
    run(old, "git", "checkout", "-q", "main")
    union.remount()
    for repository in (old, new):
        run(repository, "git", "fsck", "--full", "--strict")
        assert run(repository, "git", "status", "--porcelain") == ""
    assert run(old, "git", "rev-parse", "topic") == run(new, "git", "rev-parse", "topic")


SOURCES = {
    "Makefile": "program: main.o part.o\n\t$(CC) -o $@ $^\n%.o: %.c part.h\n\t$(CC) -O1 -c -o $@ $<\n"
                "clean:\n\trm -f *.o program\n",
    "part.h": "int part(int);\n",
    "part.c": '#include "part.h"\nint part(int n) { return n * 2; }\n',
    "main.c": '#include <stdio.h>\n#include "part.h"\nint main(void) { printf("%d\\n", part(21)); return 0; }\n',
}


@pytest.mark.needs("program:gcc", "program:make")
def test_compiling(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """make trusts times: nothing is built twice, not after a remount either, and what is touched is."""
    build(str(tmp_path / "low"), {"src": dict(SOURCES)})
    union = mount_union("low", "up")
    directory = f"{union.path}/src"
    assert "-c -o main.o main.c" in run(directory, "make", "CC=gcc")
    assert run(directory, "./program") == "42\n"
    union.remount()
    assert "up to date" in run(directory, "make", "CC=gcc")
    Path(f"{directory}/part.c").write_text(SOURCES["part.c"].replace("* 2", "* 3"))
    built = run(directory, "make", "CC=gcc")
    assert "part.c" in built
    assert "main.c" not in built
    assert run(directory, "./program") == "63\n"
    run(directory, "make", "clean")
    assert sorted(os.listdir(directory)) == sorted(SOURCES)


def test_tar(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """What tar puts over a lower tree is what was packed: all modes, owners, links and times."""
    source = tmp_path / "source"
    build(str(source), {f"d{n}": {"file": f"{n}" * 500, "sub": {"x": "y"}} for n in range(20)})
    os.link(source / "d0" / "file", source / "d1" / "link")
    os.symlink("d0/file", source / "link")
    os.mkfifo(source / "fifo")
    os.chown(source / "d2", 5, 6)
    os.chmod(source / "d3" / "file", 0o4750)
    archive = str(tmp_path / "archive.tar")
    run(str(source), "tar", "--format=posix", "-cf", archive, ".")
    build(str(tmp_path / "low"), {"t": {**{f"d{n}": {"file": "old"} for n in range(10)}, "link": {"old": ""}}})
    union = mount_union("low", "up")
    run(f"{union.path}/t", "tar", "-xpf", archive, "--recursive-unlink")
    wanted = read(str(source))
    assert_same(wanted, read(f"{union.path}/t"), "after tar -x")
    union.remount()
    assert_same(wanted, read(f"{union.path}/t"), "after a remount")
    assert run(f"{union.path}/t", "tar", "-df", archive) == ""


def test_sqlite(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """A WAL database of the lower branch: a shared-memory map, locks, two writers at once, a remount in between."""
    low = tmp_path / "low"
    low.mkdir()
    base = sqlite3.connect(low / "base.db")
    base.execute("create table numbers (writer integer, value integer)")
    base.executemany("insert into numbers values (0, ?)", ((n,) for n in range(1000)))
    base.commit()
    base.close()
    union = mount_union("low", "up")
    path = f"{union.path}/base.db"

    def write(writer: int) -> None:
        connection = sqlite3.connect(path, timeout=30)
        connection.execute("pragma synchronous=normal")
        for value in range(50):
            with connection:
                connection.execute("insert into numbers values (?, ?)", (writer, value))
        connection.close()

    first = sqlite3.connect(path)
    assert first.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    threads = [threading.Thread(target=write, args=(writer,)) for writer in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = first.execute("select writer, count(*) from numbers group by writer").fetchall()
    assert counts == [(0, 1000), (1, 50), (2, 50)]
    first.close()
    union.remount()
    again = sqlite3.connect(path)
    assert again.execute("pragma integrity_check").fetchone() == ("ok",)
    assert again.execute("select count(*) from numbers").fetchone() == (1100,)
    again.close()
