"""Writable branches on file systems that are themselves made of others: what works there, and what is missing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.capabilities import missing
from tests.contracts.posix import CASES
from tests.faults import Server, Trace
from tests.mounting import TRANSPORTS, unionfs
from tests.unionfs.settings import prepare_union
from unionfs.linux import consts, files, mounts
from unionfs.union import branch

pytestmark = pytest.mark.needs("fuse", "tmpfs-xattr")


def mergerfs(place: str, target: str) -> None:
    """Neither unnamed files (O_TMPFILE) nor flags of renameat2(2)."""
    os.mkdir(f"{place}/merged")
    options = "allow_other,inodecalc=passthrough,cache.attr=0,cache.entry=0,cache.files=auto-full"
    subprocess.run(["mergerfs", "-o", options, f"{place}/merged", target], check=True)


def overlayfs(place: str, target: str) -> None:
    for name in ("l", "u", "w"):
        os.mkdir(f"{place}/{name}")
    mounts.mount("overlay", target, "overlay", 0, f"lowerdir={place}/l,upperdir={place}/u,workdir={place}/w")


def fuse_overlayfs(place: str, target: str) -> None:
    for name in ("l", "u", "w"):
        os.mkdir(f"{place}/{name}")
    options = f"lowerdir={place}/l,upperdir={place}/u,workdir={place}/w"
    subprocess.run(["fuse-overlayfs", "-o", options, target], check=True, stderr=subprocess.DEVNULL)


def unionfs_fuse(place: str, target: str) -> None:
    os.mkdir(f"{place}/b")
    subprocess.run(["unionfs-fuse", "-o", "allow_other", f"{place}/b=RW", target], check=True)


Made = Callable[[str, str], None]


@contextlib.contextmanager
def disk(make: Made | None) -> Iterator[str]:
    """A directory with `upper`, on the file system that is made there; other users can get to it."""
    with tempfile.TemporaryDirectory(prefix="uppers-") as home, contextlib.ExitStack() as at_end:
        mounts.mount("uppers", home, "tmpfs")
        at_end.callback(mounts.umount2, home, consts.MNT_DETACH)  # other servers end a moment later
        os.chmod(home, 0o755)
        os.mkdir(f"{home}/place")
        os.mkdir(f"{home}/upper")
        if make is not None:
            make(f"{home}/place", f"{home}/upper")
            at_end.callback(mounts.umount2, f"{home}/upper")
        yield home


def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that are forked from now on find nothing on a file system that it could do without."""

    def check_writable(fd: int, path: bytes) -> tuple[str, bool]:
        return "trusted", False

    def renameat2(src_dirfd: int, src: bytes, dst_dirfd: int, dst: bytes, flags: int) -> None:
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        os.rename(src, dst, src_dir_fd=src_dirfd, dst_dir_fd=dst_dirfd)

    monkeypatch.setattr(branch, "_check_writable", check_writable)
    monkeypatch.setattr(files, "renameat2", renameat2)


NEEDS = {"mergerfs": "program:mergerfs", "overlayfs": "overlay", "lacking": "tmpfs-xattr"}
SUBJECTS = [(name, transport) for name in NEEDS for transport in TRANSPORTS]

# Of an open file whose name is gone, and of a file's other names, mergerfs tells what was; it exchanges no two names.
MERGERFS_CANNOT = {
    "a_link_that_was_there_is_removed_or_replaced", "an_open_directory_that_is_removed", "exchange",
    "count_the_names_that_are_left", "link_counts_of_directories", "long_names_that_are_linked",
    "long_names_that_are_renamed", "one_of_two_names_unlinked_while_open",
    "open_again_through_proc", "what_changes_the_time_of_change", "working_directory_that_is_removed",
    "write_after_unlink",
}  # fmt: skip
CANNOT = {"mergerfs": MERGERFS_CANNOT, "overlayfs": set[str](), "lacking": {"exchange", "long_names_that_are_renamed"}}


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda pair: "-".join(pair))
def subject(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    name, transport = request.param
    for need in ("fuse", NEEDS[name], *(["pyfuse3"] if transport == "pyfuse3" else [])):
        if reason := missing(need):
            pytest.skip(reason)
    with contextlib.ExitStack() as at_end:
        if name == "lacking":
            home = at_end.enter_context(disk(None))
            union = prepare_union("lower-only", home, "posix")
            with pytest.MonkeyPatch.context() as patch:
                lacking(patch)
                server = Server(union.branches[1].removesuffix("=ro"), union.upper, union.path, union.log,
                                transport=transport, passthrough="none")  # fmt: skip
            at_end.callback(server.stop)
        else:
            home = at_end.enter_context(disk({"mergerfs": mergerfs, "overlayfs": overlayfs}[name]))
            union = prepare_union("merged", home, f"transport={transport}").mount()
            at_end.callback(union.close)
        yield name, union.path


@pytest.mark.parametrize("name", CASES)
def test_posix(subject: tuple[str, str], name: str) -> None:
    kind, directory = subject
    case = CASES[name]
    if name in CANNOT[kind]:
        pytest.skip(f"{kind} itself does not do that")
    for capability in case.needs:
        if reason := missing(capability):
            pytest.skip(reason)
    case.run(os.path.join(directory, name))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.needs("ptrace")
def test_a_copy_that_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    """Killed before any step of a copy-up, the server leaves a copy in the work area at most, and the next takes it
    away."""
    lacking(monkeypatch)
    lower, upper, path = tmp_path / "low", tmp_path / "up", tmp_path / "mnt"
    path.mkdir()
    lower.mkdir()
    for name, hidden in (("f", False), ("h", True)):
        (lower / name).write_text("lower" * 1000)
        if hidden:
            os.link(lower / name, lower / "h2")

    def server() -> Server:
        return Server(str(lower), str(upper), str(path), str(tmp_path / "log"), transport=transport)

    for name in ("f", "h"):
        steps = 0
        for step in range(100):
            shutil.rmtree(upper, ignore_errors=True)
            upper.mkdir()
            (upper / "other").write_text("other")
            one = server()
            try:
                if step == 0:
                    trace = Trace(one, str(tmp_path / "trace"))
                    os.close(os.open(path / name, os.O_RDWR))
                    trace.detach()
                    points = trace.points()
                    one.stop()
                    continue
                if step > len(points):
                    one.stop()
                    break
                point = points[step - 1]
                trace = Trace(one, str(tmp_path / "trace"), f"{point.call}:signal=KILL:when={point.number}")
                with contextlib.suppress(OSError):
                    os.close(os.open(path / name, os.O_RDWR))
                one.bury()
                trace.ended()
            finally:
                one.dispose()
            left = {entry for entry in os.listdir(upper) if entry not in ("other", name, ".wh..wh.plnk")}
            assert left <= {".wh..wh.orph"}, point
            steps += left == {".wh..wh.orph"} and bool(os.listdir(upper / ".wh..wh.orph"))
            one = server()
            try:
                assert (path / name).read_text() == "lower" * 1000
                assert not (upper / ".wh..wh.orph").exists(), point
            finally:
                one.stop()
        assert steps > 1, "there was never a copy to be left"


# What cannot be written to


REFUSED = {
    "fuse_overlayfs": (fuse_overlayfs, "fuse.fuse-overlayfs", "names that begin with .wh."),
    "unionfs_fuse": (unionfs_fuse, "fuse.unionfs-fuse", "no extended attributes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_missing_is_named(name: str) -> None:
    make, fstype, word = REFUSED[name]
    if reason := missing(f"program:{name.replace('_', '-')}"):
        pytest.skip(reason)
    with disk(make) as home:
        said = refused(home)
        assert f"({fstype})" in said
        assert word in said
        assert os.listdir(f"{home}/upper") == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_union_on_a_union(transport: str) -> None:
    """Its names are ours. Below it is fine."""
    with disk(None) as home:
        os.mkdir(f"{home}/place/b")
        Path(home, "place", "b", "f").write_text("text")
        unionfs("mount", "-o", f"transport={transport}", f"{home}/place/b", f"{home}/upper")
        try:
            os.mkdir(f"{home}/upper/sub")
            for where in ("upper", "upper/sub"):
                said = refused(home, where)
                assert "it is a union" in said
                assert "names that begin with .wh." in said
                assert "(fuse.unionfs)" in said
            os.mkdir(f"{home}/up")
            unionfs("mount", f"{home}/upper:{home}/up", f"{home}/mnt")
            try:
                assert Path(home, "mnt", "f").read_text() == "text"
                Path(home, "mnt", "f").write_text("changed")
                assert Path(home, "upper", "f").read_text() == "text"
            finally:
                unionfs("umount", f"{home}/mnt")
        finally:
            unionfs("umount", f"{home}/upper")


def refused(home: str, where: str = "upper") -> str:
    for name in ("low", "mnt"):
        os.makedirs(f"{home}/{name}", exist_ok=True)
    words = [sys.executable, "-m", "unionfs", "mount", f"{home}/low:{home}/{where}", f"{home}/mnt"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"unionfs: {home}/{where}: ")
    assert done.stderr.count("\n") == 1
    assert "mark it =ro" in done.stderr
    return done.stderr
