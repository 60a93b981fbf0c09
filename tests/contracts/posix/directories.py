"""Directories: making, removing, listing while they change, times, working directories."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable

from tests.contracts.posix.case import case, content, fails, in_child, opened, put
from tests.trees import Dir, File, Special, Symlink
from unionfs.linux import libc

LONG_AGO = 10**18


@case({"dir": {}, "full": {"file": ""}, "file": ""})
def make_and_remove(root: str) -> None:
    os.mkdir(f"{root}/new")
    assert os.listdir(f"{root}/new") == []
    with fails(errno.EEXIST):
        os.mkdir(f"{root}/new")
    with fails(errno.EEXIST):
        os.mkdir(f"{root}/file")
    with fails(errno.ENOENT):
        os.mkdir(f"{root}/missing/new")
    with fails(errno.ENOTDIR):
        os.mkdir(f"{root}/file/new")
    os.rmdir(f"{root}/new")
    os.rmdir(f"{root}/dir")
    with fails(errno.ENOENT):
        os.rmdir(f"{root}/dir")
    with fails(errno.ENOTEMPTY):
        os.rmdir(f"{root}/full")
    with fails(errno.ENOTDIR):
        os.rmdir(f"{root}/file")
    with fails(errno.EISDIR):
        os.unlink(f"{root}/full")
    with fails(errno.EINVAL):
        os.rmdir(f"{root}/full/.")
    with fails(errno.ENOTEMPTY):
        os.rmdir(f"{root}/full/..")
    assert sorted(os.listdir(root)) == ["file", "full"]


@case({"dir": {"a": "1", "sub": {"b": "2", "deep": {"c": "3"}}}, "keep": ""})
def remove_a_whole_tree_and_make_it_again(root: str) -> None:
    shutil.rmtree(f"{root}/dir")
    assert os.listdir(root) == ["keep"]
    with fails(errno.ENOENT):
        os.stat(f"{root}/dir/sub/b")
    os.makedirs(f"{root}/dir/sub/deep")
    assert os.listdir(f"{root}/dir/sub/deep") == []
    assert os.listdir(f"{root}/dir") == ["sub"]
    put(f"{root}/dir/sub/b", b"new")
    assert content(f"{root}/dir/sub/b") == b"new"


@case({"dir": {"a": "1"}, "file": "f"})
def replace_one_type_by_another(root: str) -> None:
    os.unlink(f"{root}/file")
    os.mkdir(f"{root}/file")
    put(f"{root}/file/inside", b"x")
    os.unlink(f"{root}/dir/a")
    os.rmdir(f"{root}/dir")
    put(f"{root}/dir", b"now a file")
    assert content(f"{root}/dir") == b"now a file"
    with fails(errno.ENOTDIR):
        os.stat(f"{root}/dir/a")
    os.unlink(f"{root}/dir")
    os.symlink("file", f"{root}/dir")
    assert os.listdir(f"{root}/dir") == ["inside"]


@case({"f": "", "d": {}, "l": Symlink("f"), "p": Special(), "s": Special(type=stat.S_IFSOCK)})
def listing_tells_types_and_numbers(root: str) -> None:
    with os.scandir(root) as entries:
        found = {e.name: (e.is_file(follow_symlinks=False), e.is_dir(follow_symlinks=False), e.is_symlink(), e.inode())
                 for e in entries}
    expected = {}
    for name in ("f", "d", "l", "p", "s"):
        info = os.lstat(f"{root}/{name}")
        mode = info.st_mode
        expected[name] = (stat.S_ISREG(mode), stat.S_ISDIR(mode), stat.S_ISLNK(mode), info.st_ino)
    assert found == expected


@case({"many": {f"file-{number:04}": "" for number in range(5000)}})
def remove_while_listing(root: str) -> None:
    """Each of 5,000 entries is seen exactly once although those seen before are gone (readdir(3))."""
    path = f"{root}/many"
    seen = []
    with os.scandir(path) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert len(seen) == len(set(seen)) == 5000
    assert os.listdir(path) == []
    os.rmdir(path)


@case({"dir": {f"old-{number}": "" for number in range(200)}})
def create_while_listing(root: str) -> None:
    """What was there all the time is listed once; what is new may or may not be."""
    seen = []
    with os.scandir(f"{root}/dir") as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number < 100:
                put(f"{root}/dir/fresh-{number}", b"")
    assert sorted(name for name in seen if name.startswith("old")) == sorted(f"old-{n}" for n in range(200))
    assert len(seen) == len(set(seen))
    assert len(os.listdir(f"{root}/dir")) == 300


class dirent(ctypes.Structure):
    """glibc's struct dirent on 64-bit Linux"""

    _fields_ = [("d_ino", ctypes.c_uint64), ("d_off", ctypes.c_int64), ("d_reclen", ctypes.c_uint16),
                ("d_type", ctypes.c_uint8), ("d_name", ctypes.c_char * 256)]


_fdopendir = libc.bind("fdopendir", ctypes.c_int, restype=ctypes.c_void_p)
_readdir = libc.bind("readdir", ctypes.c_void_p, restype=ctypes.c_void_p)
_telldir = libc.bind("telldir", ctypes.c_void_p, restype=ctypes.c_long)
_seekdir = libc.bind("seekdir", ctypes.c_void_p, ctypes.c_long, restype=None)
_rewinddir = libc.bind("rewinddir", ctypes.c_void_p, restype=None)
_closedir = libc.bind("closedir", ctypes.c_void_p)


def _next(stream: int) -> bytes | None:
    address = _readdir(stream)
    return dirent.from_address(address).d_name if address else None


@case({"dir": {f"entry-{number}": "" for number in range(300)}})
def seek_in_a_directory(root: str) -> None:
    """telldir's position, taken back with seekdir, gives the same entry; rewinddir sees what is new."""
    stream = _fdopendir(os.open(f"{root}/dir", os.O_RDONLY | os.O_DIRECTORY))
    try:
        positions = [_telldir(stream)]
        names = []
        while (name := _next(stream)) is not None:
            names.append(name)
            positions.append(_telldir(stream))
        assert len(names) == len(set(names)) == 302
        for index in (150, 3, 0, 299, 301):
            _seekdir(stream, positions[index])
            assert _next(stream) == names[index]
        os.unlink(f"{root}/dir/entry-7")
        put(f"{root}/dir/late", b"")
        _rewinddir(stream)
        again = set()
        while (name := _next(stream)) is not None:
            again.add(name)
        assert again == (set(names) | {b"late"}) - {b"entry-7"}
    finally:
        _closedir(stream)


@case({"dir": Dir({"a": "", "b": "", "c": "", "sub": {}}, mtime_ns=LONG_AGO)})
def directory_times(root: str) -> None:
    """Every change of the entries updates mtime, and a change of a file's data does not."""
    path = f"{root}/dir"
    changes: dict[str, Callable[[], object]] = {
        "create": lambda: put(f"{path}/n", b""),
        "mkdir": lambda: os.mkdir(f"{path}/d"),
        "symlink": lambda: os.symlink("x", f"{path}/s"),
        "link": lambda: os.link(f"{path}/a", f"{path}/l"),
        "mknod": lambda: os.mkfifo(f"{path}/p"),
        "rename": lambda: os.rename(f"{path}/b", f"{path}/b2"),
        "rename over": lambda: os.rename(f"{path}/b2", f"{path}/n"),
        "move out": lambda: os.rename(f"{path}/n", f"{root}/new"),
        "move in": lambda: os.rename(f"{root}/new", f"{path}/n"),
        "unlink": lambda: os.unlink(f"{path}/c"),
        "rmdir": lambda: os.rmdir(f"{path}/sub"),
    }
    for what, change in changes.items():
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
        before = os.stat(path).st_ctime_ns
        change()
        assert os.stat(path).st_mtime_ns > LONG_AGO, f"{what} does not update the directory's mtime"
        assert os.stat(path).st_ctime_ns >= before
    os.utime(path, ns=(LONG_AGO, LONG_AGO))
    put(f"{path}/a", b"data")
    os.chmod(f"{path}/a", 0o600)
    os.utime(f"{path}/a", ns=(1, 1))
    assert os.stat(path).st_mtime_ns == LONG_AGO, "a file's own change updates its directory's mtime"


@case({"dir": Dir({"sub": {"file": "x"}}, mtime_ns=LONG_AGO)})
def a_change_below_leaves_the_times_above(root: str) -> None:
    put(f"{root}/dir/sub/new", b"")
    put(f"{root}/dir/sub/file", b"y")
    assert os.stat(f"{root}/dir").st_mtime_ns == LONG_AGO


@case({"dir": {"sub": {"file": "inside"}}})
def working_directory_in_a_renamed_directory(root: str) -> None:
    def wander() -> tuple[str, bytes, list[str]]:
        os.chdir(f"{root}/dir/sub")
        os.rename(f"{root}/dir", f"{root}/new")
        put("made", b"")
        return os.getcwd(), content("file"), sorted(os.listdir("../sub"))

    assert in_child(wander) == (os.path.realpath(f"{root}/new/sub"), b"inside", ["file", "made"])


@case({"dir": {}})
def working_directory_that_is_removed(root: str) -> None:
    def wander() -> None:
        os.chdir(f"{root}/dir")
        os.rmdir(f"{root}/dir")
        with fails(errno.ENOENT):
            os.getcwd()
        with fails(errno.ENOENT):
            put("file", b"")
        with fails(errno.ENOENT):
            os.mkdir("sub")
        assert os.listdir(".") == []

    in_child(wander)
    assert not os.path.exists(f"{root}/dir")


@case({"dir": {"a": "", "b": ""}})
def an_open_directory_that_is_removed(root: str) -> None:
    with opened(f"{root}/dir", os.O_RDONLY | os.O_DIRECTORY) as fd:
        shutil.rmtree(f"{root}/dir")
        os.mkdir(f"{root}/dir")
        put(f"{root}/dir/other", b"")
        with fails(errno.ENOENT):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        assert os.listdir(fd) == []
        assert os.fstat(fd).st_ino != os.stat(f"{root}/dir").st_ino
    assert os.listdir(f"{root}/dir") == ["other"]


@case({"dir": {"sub": {}}, "other": {}})
def link_counts_of_directories(root: str) -> None:
    """2 and one for each subdirectory, or 1 where it is not kept; none for what is gone and still open."""
    path = f"{root}/dir"
    put(f"{path}/new", b"")  # in a union it may merge two directories from now on
    before = os.stat(path).st_nlink
    counts = before != 1
    os.mkdir(f"{path}/new-dir")
    assert os.stat(path).st_nlink == before + counts
    with opened(f"{path}/sub", os.O_RDONLY) as removed, opened(f"{root}/other", os.O_RDONLY) as replaced:
        os.rmdir(f"{path}/sub")
        assert os.fstat(removed).st_nlink == 0
        assert os.stat(path).st_nlink == before
        os.rename(f"{path}/new-dir", f"{root}/other")
        assert os.fstat(replaced).st_nlink == 0
        assert os.stat(path).st_nlink == before - counts
        os.mkdir(f"{path}/sub")
        assert os.fstat(removed).st_nlink == 0
        assert os.stat(f"{root}/other").st_nlink in (1, 2)


@case({"dir": {"sub": {}}})
def dot_and_dot_dot(root: str) -> None:
    sub = f"{root}/dir/sub"
    assert os.stat(f"{sub}/.").st_ino == os.stat(sub).st_ino
    assert os.stat(f"{sub}/..").st_ino == os.stat(f"{root}/dir").st_ino
    os.rename(sub, f"{root}/new")
    assert os.stat(f"{root}/new/..").st_ino == os.stat(root).st_ino
    with fails(errno.EEXIST):
        os.mkdir(f"{root}/dir/..")


@case({"dir": {f"shared-{number}": "" for number in range(8)}})
def eight_threads_in_one_directory(root: str) -> None:
    """Threads that make and remove their own names and rename a file over each other's lose nothing."""
    path = f"{root}/dir"
    problems: list[BaseException] = []

    def work(me: int) -> None:
        try:
            for turn in range(25):
                put(f"{path}/{me}-{turn}", b"%d" % turn)
                os.rename(f"{path}/{me}-{turn}", f"{path}/{me}-kept" if turn % 2 else f"{path}/winner")
            os.unlink(f"{path}/shared-{me}")
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems
    assert sorted(os.listdir(path)) == sorted([f"{n}-kept" for n in range(8)] + ["winner"])
    assert content(f"{path}/winner") in {b"%d" % turn for turn in range(0, 25, 2)}
    assert [content(f"{path}/{n}-kept") for n in range(8)] == [b"23"] * 8


@case({"file": File("x"), "dir": {"sub": {}}})
def link_counts_of_files(root: str) -> None:
    assert os.stat(f"{root}/file").st_nlink == 1
    # A directory's count is 2 + subdirectories, or 1 where it is not kept (btrfs, overlayfs, AUFS "approximate").
    assert os.stat(f"{root}/dir").st_nlink in (1, 2, 3)
