"""What do whole programs cost, whose own work is the same everywhere?

  git clone + status + checkout   of a repository with 5,000 files of 1 kB; checkout goes to a branch in which every
                                  fifth file differs. The parts are measured too
  tar x                           of 10,000 files of 1 kB in 100 directories, by root: owners, modes and times are set
  cc                              of 200 small C files, `gcc -c` in one call, each with 20 of 60 headers that are found
                                  in the second of two directories. Sources and headers are in the lower layer

The repository and the archive lie outside the union, on the same file system and in the page cache; what the programs
write goes to the upper directory. Nothing uses the network. These take long, so they get a third of the rounds.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.subjects import flush
from benchmarks.timing import Sample, rotated, seconds
from benchmarks.unions import Mounted, Union, lower_directory

GIT_FILES, TAR_FILES, C_FILES = 5000, 10000, 200
QUICK_FILES = 200, 400, 5
HEADERS, INCLUDED = 60, 20

# A user's configuration, and hooks that a distribution's template brings, would be other work.
GIT_ENVIRONMENT = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}


def make_repository(path: str, files: int) -> None:
    """A bare repository with the branches `main` and `other`, all objects in one pack."""
    _git("init", "--quiet", "--bare", "--initial-branch=main", "--template=", path)
    stream = b"".join([*_commit(b"main", range(files)), *_commit(b"other", range(0, files, 5))])
    _git("-C", path, "fast-import", "--quiet", stdin=stream)


def _commit(branch: bytes, numbers: Sequence[int]) -> Iterator[bytes]:
    """git-fast-import(1): a commit on `branch` that writes these files; `other` begins where `main` is."""
    yield b"commit refs/heads/%b\ncommitter a <a@b> 1000000000 +0000\ndata 0\n" % branch
    yield b"from refs/heads/main\n" if branch != b"main" else b""
    for number in numbers:
        text = b"%b %d\n" % (branch, number) * 64
        yield b"M 100644 inline %d/%d\ndata %d\n%b\n" % (number // 50, number, len(text), text)


def _git(*arguments: str, stdin: bytes = b"") -> None:
    subprocess.run(["git", *arguments], env=GIT_ENVIRONMENT, input=stdin, stdout=subprocess.DEVNULL, check=True)


def make_archive(path: str, files: int) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(files):
            member = tarfile.TarInfo(f"{number * 100 // files}/{number}")
            member.size, member.mtime = 1000, 1_000_000_000
            archive.addfile(member, io.BytesIO(bytes(1000)))


def make_sources(directory: str, files: int) -> None:
    for name in ("first", "second", "objects"):
        os.mkdir(os.path.join(directory, name))
    for number in range(HEADERS):
        with open(os.path.join(directory, f"second/h{number}.h"), "w") as header:
            header.write(f"#ifndef H{number}\n#define H{number}\nextern int f{number}(int);\n#endif\n")
    for number in range(files):
        included = "".join(f'#include "h{(number + i) % HEADERS}.h"\n' for i in range(INCLUDED))
        with open(os.path.join(directory, f"{number}.c"), "w") as source:
            source.write(f"{included}int g{number}(int x) {{ return f{number % HEADERS}(x) + {number}; }}\n")


def run(unions: Sequence[Union], work: str, rounds: int, *, quick: bool = False) -> Iterator[Sample]:
    """Raises OSError, drivers.errors.DriverError as the unions do, and subprocess.CalledProcessError."""
    git_files, tar_files, c_files = QUICK_FILES if quick else (GIT_FILES, TAR_FILES, C_FILES)
    with tempfile.TemporaryDirectory(prefix="inputs-", dir=work) as inputs:
        repository, archive = os.path.join(inputs, "repository.git"), os.path.join(inputs, "archive.tar")
        make_repository(repository, git_files)
        make_archive(archive, tar_files)
        with lower_directory(work, lambda directory: make_sources(directory, c_files)) as lower:
            for turn in range(max(1, rounds // 3)):
                for union in rotated(unions, turn):
                    with union.over(lower) as tree:
                        for measure, value in _once(tree, repository, archive, c_files):
                            yield Sample("workloads", measure, union.name, value)
                    flush(work)


def _once(tree: Mounted, repository: str, archive: str, c_files: int) -> Iterator[tuple[str, float]]:
    """One round on one union: each measure with its seconds."""
    clone = os.path.join(tree.path, "clone")
    git = {
        "git clone": ("clone", "--quiet", "--no-hardlinks", "--template=", repository, clone),
        "git status": ("-C", clone, "status"),
        "git checkout": ("-C", clone, "checkout", "--quiet", "other"),
    }
    taken = {measure: seconds(partial(_git, *arguments)) for measure, arguments in git.items()}
    yield "git clone + status + checkout", sum(taken.values())
    yield from taken.items()
    extracted = os.path.join(tree.path, "extracted")
    os.mkdir(extracted)
    yield "tar x", seconds(partial(subprocess.run, ["tar", "-xf", archive, "-C", extracted], check=True))
    compile_all = ["gcc", "-c", "-pipe", "-I../first", "-I../second", *(f"../{n}.c" for n in range(c_files))]
    objects = os.path.join(tree.path, "objects")
    yield "cc", seconds(partial(subprocess.run, compile_all, cwd=objects, check=True))
