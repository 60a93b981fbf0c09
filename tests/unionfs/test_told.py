"""What the kernel keeps of a file's attributes is what it would be told if it asked, after every change: also of files
and directories that a change copied up, which the kernel does not know were touched.

A program that looks twice takes a difference for somebody's change: tar(1) says "file changed as we read it".
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.contracts.posix.acl import ACCESS, DEFAULT, HANDED_DOWN
from tests.contracts.posix.case import put
from tests.mounting import Union
from tests.trees import Dir, Entry, File, HardLink, Special, Symlink, build
from unionfs.linux import consts, files

pytestmark = [pytest.mark.needs("fuse", "user-xattr", "trusted-xattr")]

LOWER: Mapping[str, Entry] = {
    "p": Dir({
        "src": Dir({
            "a": "lower\n", "b": File("b", mode=0o4755), "link": Symlink("a"), "fifo": Special(),
            "one": "hard", "two": HardLink("one"),
            "full": Dir({"x": "x", "deep": Dir({"y": "y", "z": Symlink("y")})}), "empty": Dir({}),
        }, mode=0o2755, gid=50),
    }),
    "q": Dir({"r": Dir({"there": "there"})}),
}  # fmt: skip
UPPER: Mapping[str, Entry] = {"q": Dir({"new": "new"})}


def opened(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def flagged(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        files.set_flags(fd, files.get_flags(fd) ^ consts.FS_NODUMP_FL)
    finally:
        os.close(fd)


def exchanged(path: str, other: str) -> None:
    files.renameat2(
        consts.AT_FDCWD, os.fsencode(path), consts.AT_FDCWD, os.fsencode(other), consts.RENAME_EXCHANGE
    )


CHANGES: Mapping[str, Callable[[str], object]] = {
    "append": lambda top: put(f"{top}/p/src/a", b"y\n", os.O_APPEND),
    "open to write": lambda top: opened(f"{top}/p/src/a", os.O_WRONLY),
    "open to read and write": lambda top: opened(f"{top}/p/src/a", os.O_RDWR),
    "open to truncate": lambda top: opened(f"{top}/p/src/a", os.O_RDWR | os.O_TRUNC),
    "open a hard link": lambda top: opened(f"{top}/p/src/one", os.O_WRONLY),
    "truncate": lambda top: os.truncate(f"{top}/p/src/a", 2),
    "chmod": lambda top: os.chmod(f"{top}/p/src/a", 0o600),
    "chown": lambda top: os.chown(f"{top}/p/src/b", 3, 3),
    "chown of a symbolic link": lambda top: os.lchown(f"{top}/p/src/link", 3, 3),
    "utime": lambda top: os.utime(f"{top}/p/src/fifo"),
    "setxattr": lambda top: os.setxattr(f"{top}/p/src/a", "user.new", b"1"),
    "set an ACL": lambda top: os.setxattr(f"{top}/p/src/a", ACCESS, HANDED_DOWN),
    "chmod of a directory": lambda top: os.chmod(f"{top}/p/src/full/deep", 0o700),
    "setxattr of a directory": lambda top: os.setxattr(f"{top}/p/src/full", "user.new", b"1"),
    "hand down an ACL": lambda top: os.setxattr(f"{top}/p/src/full", DEFAULT, HANDED_DOWN),
    "chattr": lambda top: flagged(f"{top}/p/src/a"),
    "chattr of what is upper": lambda top: flagged(f"{top}/q/new"),
    "chattr of a directory": lambda top: flagged(f"{top}/q"),
    "create": lambda top: put(f"{top}/p/src/new", b"new"),
    "create deeper": lambda top: put(f"{top}/p/src/full/deep/new", b"new"),
    "create unnamed": lambda top: opened(f"{top}/p/src/full", os.O_TMPFILE | os.O_RDWR),
    "mkdir": lambda top: os.mkdir(f"{top}/p/src/new"),
    "mkfifo": lambda top: os.mkfifo(f"{top}/p/src/new"),
    "symlink": lambda top: os.symlink("x", f"{top}/p/src/new"),
    "link": lambda top: os.link(f"{top}/p/src/a", f"{top}/q/r/new"),
    "link of a hard link": lambda top: os.link(f"{top}/p/src/one", f"{top}/q/new-link"),
    "unlink": lambda top: os.unlink(f"{top}/p/src/a"),
    "unlink of a hard link": lambda top: os.unlink(f"{top}/p/src/one"),
    "rmdir": lambda top: os.rmdir(f"{top}/p/src/empty"),
    "rename": lambda top: os.rename(f"{top}/p/src/a", f"{top}/p/src/new"),
    "rename of a hard link": lambda top: os.rename(f"{top}/p/src/two", f"{top}/q/r/new"),
    "rename into": lambda top: os.rename(f"{top}/q/new", f"{top}/p/src/new"),
    "rename over": lambda top: os.rename(f"{top}/q/new", f"{top}/p/src/a"),
    "rename over a hard link": lambda top: os.rename(f"{top}/q/new", f"{top}/p/src/one"),
    "rename a directory": lambda top: os.rename(f"{top}/p/src/full", f"{top}/q/r/new"),
    "rename over a directory": lambda top: os.rename(f"{top}/p/src/full", f"{top}/p/src/empty"),
    "exchange": lambda top: exchanged(f"{top}/p/src/full", f"{top}/q/r"),
}
# Over pyfuse3 there are neither flags nor unnamed files.
MISSING = {"pyfuse3": ("create unnamed", "chattr", "chattr of what is upper", "chattr of a directory")}


@pytest.fixture(scope="module")
def union(transport: str) -> Iterator[Union]:
    """A tree for each of CHANGES, in one mount. Its writable branch has no work area and no base of whiteouts yet."""
    with tempfile.TemporaryDirectory(prefix="told-") as home:
        names = [name.replace(" ", "-") for name in CHANGES]
        build(f"{home}/low", {name: Dir(LOWER) for name in names})
        build(f"{home}/up", {name: Dir(UPPER) for name in names})
        union = Union(home, [f"{home}/low", f"{home}/up"], transport=transport)
        yield union.mount()
        union.close()


def attributes(fds: list[int], cached: str) -> list[str]:
    """By statx(2): as the kernel has them, or as it is told when it asks."""
    said = subprocess.run(
        ["stat", "-L", f"--cached={cached}", "--format=%f %h %u %g size %s blocks %b mtime %y ctime %z",
         *(f"/proc/self/fd/{fd}" for fd in fds)],
        capture_output=True, text=True, check=True, pass_fds=fds,
    )  # fmt: skip
    return said.stdout.splitlines()


def below(top: str) -> list[str]:
    found = [top]
    for directory, directories, names in os.walk(top):
        found += [os.path.join(directory, name) for name in (*directories, *names)]
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_is_what_is(union: Union, transport: str, change: str) -> None:
    if change in MISSING.get(transport, ()):
        pytest.skip("it is not offered over this transport")
    top = f"{union.path}/{change.replace(' ', '-')}"
    before = [union.path, *below(top)]
    fds = [os.open(path, os.O_PATH | os.O_NOFOLLOW) for path in before]
    try:
        attributes(fds, "never")
        CHANGES[change](top)
        # By descriptor, for names change.
        kept, told = (attributes(fds, cached) for cached in ("default", "never"))
    finally:
        for fd in fds:
            os.close(fd)
    differing = [f"{path}\n  kept {one}\n  is   {other}" for path, one, other in zip(before, kept, told, strict=True)
                 if one != other]  # fmt: skip
    assert not differing, "\n".join(differing)


def test_tar(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    build(str(tmp_path / "low"), LOWER)
    union = mount_union("low", "up")
    for path in ("p", "p/src/b"):
        os.stat(f"{union.path}/{path}")
    put(f"{union.path}/p/src/a", b"y\n", os.O_APPEND)
    opened(f"{union.path}/p/src/b", os.O_WRONLY)
    done = subprocess.run(["tar", "-c", "-f", tmp_path / "t", "-C", union.path, "p"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
