"""A union in the test's own process: `UnionFs` on directories, without a mount, by paths where a kernel passes numbers.

What a kernel would hold is what a test looked up and did not forget. Paths are str, relative to the root, "" the root.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from unionfs.union.branch import Branch
from unionfs.union.fs import UnionFs
from unionfs.union.numbers import Xino
from unionfs.union.waiting import Waiting

ROOT = 1
_WHOLE = 1 << 20


@contextlib.contextmanager
def union(
    base: os.PathLike[str],
    *lower: str,
    upper: str | None = "up",
    volatile: bool = True,
    xino: Xino = "auto",
    waiting: Waiting | None = None,
) -> Iterator[UnionFs]:
    """`upper` over the directories `lower` ("low" unless named), top first, all below `base` and made if missing.

    The umask is 0 meanwhile, as in a server.
    """
    umask = os.umask(0)
    try:
        branches = []
        for name in ([upper] if upper else []) + list(lower or ("low",)):
            path = os.path.join(base, name)
            os.makedirs(path, 0o755, exist_ok=True)
            branches.append(Branch.open(os.fsencode(path), "rw" if name == upper else "ro"))
        fs = UnionFs(branches, volatile=volatile, xino=xino, waiting=waiting)
        try:
            yield fs
        finally:
            fs.close()
    finally:
        os.umask(umask)


def walk(fs: UnionFs, path: str) -> int:
    """The number of the file at `path`. Each step counts a lookup, as the kernel's would; FileNotFoundError."""
    ino = ROOT
    for name in path.split("/") if path else ():
        attr = fs.lookup(ino, os.fsencode(name))
        if attr is None:
            raise FileNotFoundError(path)
        ino = attr.ino
    return ino


@contextlib.contextmanager
def opened(fs: UnionFs, ino: int, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A handle on a regular file."""
    fh = fs.open(ino, flags)
    try:
        yield fh
    finally:
        fs.release(fh)


def content(fs: UnionFs, ino: int) -> bytes:
    fh = fs.open(ino, os.O_RDONLY)
    try:
        return fs.read(fh, 0, _WHOLE)
    finally:
        fs.release(fh)


def write(fs: UnionFs, ino: int, data: bytes, offset: int = 0) -> None:
    """As `dd conv=notrunc` does."""
    fh = fs.open(ino, os.O_WRONLY)
    try:
        fs.write(fh, offset, data)
    finally:
        fs.release(fh)


def create(fs: UnionFs, parent: int, name: bytes, data: bytes = b"") -> int:
    """A new file's number, looked up once."""
    fh, attr = fs.create(parent, name, 0o644, 0, 0)
    try:
        if data:
            fs.write(fh, 0, data)
    finally:
        fs.release(fh)
    return attr.ino


def listing(fs: UnionFs, ino: int = ROOT) -> list[bytes]:
    names: list[bytes] = []
    cookie = 0
    while entries := fs.list(ino, cookie, 100):
        names += [name for name, *_ in entries]
        cookie = entries[-1][-1]
    assert names[:2] == [b".", b".."]
    return sorted(names[2:])


class Seen(NamedTuple):
    """What must agree of an entry: `nlink` is 1 and `content` None for directories; a link's content is its target."""

    mode: str
    owner: int
    nlink: int
    content: bytes | None
    xattrs: dict[str, bytes]
    ino: int


def see(fs: UnionFs, ino: int) -> Seen:
    attr = fs.getattr(ino)
    mode = attr.st.st_mode
    inside = content(fs, ino) if stat.S_ISREG(mode) else fs.readlink(ino) if stat.S_ISLNK(mode) else None
    xattrs = {os.fsdecode(name): fs.getxattr(ino, name) for name in fs.listxattr(ino)}
    nlink = 1 if stat.S_ISDIR(mode) else attr.nlink
    return Seen(oct(mode), attr.st.st_uid, nlink, inside, xattrs, attr.ino)


def snapshot(fs: UnionFs) -> dict[str, Seen]:
    """Everything below the root, by path. All that was looked up for it is forgotten again."""
    found: dict[str, Seen] = {}
    pending = [("", ROOT)]
    while pending:
        path, directory = pending.pop()
        counted = len(pending)
        for name in listing(fs, directory):
            attr = fs.lookup(directory, name)
            assert attr is not None, f"{path}/{os.fsdecode(name)} is listed and not found"
            entry = os.path.join(path, os.fsdecode(name))
            found[entry] = see(fs, attr.ino)
            if stat.S_ISDIR(attr.st.st_mode):
                pending.append((entry, attr.ino))
            else:
                fs.forget([(attr.ino, 1)])
        links, subdirectories = fs.getattr(directory).nlink, len(pending) - counted
        assert links in (1, 2 + subdirectories), f"{path} has {subdirectories} subdirectories and a count of {links}"
        if directory != ROOT:
            fs.forget([(directory, 1)])
    return dict(sorted(found.items()))


def differences(before: dict[str, Seen], after: dict[str, Seen]) -> dict[str, tuple[Seen | None, Seen | None]]:
    """Of two snapshots: path -> (before, after), empty when they agree."""
    return {
        path: (before.get(path), after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    }


def known(fs: UnionFs) -> int:
    """How many files are in the node table, the root among them."""
    return len(fs._stack.nodes)


def waiting_for_copies(fs: UnionFs) -> int:
    """How many threads wait for a copy-up that another thread makes."""
    return len(fs._stack.settled._waiters)  # type: ignore[attr-defined]


def keep_few_directories(fs: UnionFs, most: int) -> None:
    """Make the cache of branch directories so small that operations meet its evictions."""
    fs._stack.directories._most_directories = most


def remembered_names(fs: UnionFs) -> int:
    """How many names of branch directories are in memory."""
    return fs._stack.directories._kept.names


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def remove_deep(*paths: os.PathLike[str]) -> None:
    """Trees that shutil.rmtree is too recursive for, and pytest with it when it tidies up."""
    subprocess.run(["rm", "-rf", "--", *paths], check=True)
