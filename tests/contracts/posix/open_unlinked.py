"""A file stays whole as long as it is open, whatever becomes of its name."""

from __future__ import annotations

import errno
import mmap
import os

from tests.contracts.posix.case import case, content, fails, opened, put
from tests.trees import File, HardLink


@case({"file": File("whole", mode=0o640, uid=3)})
def read_after_unlink(root: str) -> None:
    path = f"{root}/file"
    with opened(path, os.O_RDONLY) as fd:
        before = os.fstat(fd)
        os.unlink(path)
        assert not os.path.exists(path)
        assert os.read(fd, 100) == b"whole"
        after = os.fstat(fd)
        assert after.st_nlink == 0
        assert (after.st_ino, after.st_mode, after.st_uid, after.st_size) == (before.st_ino, before.st_mode, 3, 5)


@case({"one": "whole", "two": HardLink("one"), "three": HardLink("one")})
def count_the_names_that_are_left(root: str) -> None:
    with opened(f"{root}/two", os.O_RDWR) as fd:
        for left, name in ((2, "one"), (1, "two"), (0, "three")):
            os.unlink(f"{root}/{name}")
            assert os.fstat(fd).st_nlink == left
            os.pwrite(fd, b"W", 0)
            assert os.fstat(fd).st_nlink == left
        put(f"{root}/one", b"another")
        assert os.fstat(fd).st_nlink == 0


@case({"file": "whole"})
def write_after_unlink(root: str) -> None:
    path = f"{root}/file"
    with opened(path, os.O_RDWR) as fd:
        os.unlink(path)
        os.pwrite(fd, b" still", 5)
        assert os.pread(fd, 100, 0) == b"whole still"
        os.ftruncate(fd, 3)
        assert os.fstat(fd).st_size == 3
        os.fchmod(fd, 0o600)
        os.utime(fd, ns=(1, 2))
        os.fchown(fd, 5, 6)
        info = os.fstat(fd)
        assert (info.st_mode & 0o777, info.st_mtime_ns, info.st_uid, info.st_gid) == (0o600, 2, 5, 6)
        os.fsync(fd)
        put(path, b"another")
        assert os.pread(fd, 100, 0) == b"who"
        assert content(path) == b"another"
        assert os.fstat(fd).st_ino != os.stat(path).st_ino
    assert content(path) == b"another"


@case({"file": "whole"})
def written_before_unlink_read_by_another_descriptor(root: str) -> None:
    """The read-only descriptor is older than the write, and the write older than the unlink."""
    path = f"{root}/file"
    with opened(path, os.O_RDONLY) as reader, opened(path, os.O_RDWR) as writer:
        os.pwrite(writer, b"W", 0)
        os.unlink(path)
        os.pwrite(writer, b"!", 5)
        assert os.pread(reader, 100, 0) == b"Whole!"


@case({"file": "whole"})
def open_again_through_proc(root: str) -> None:
    """What /proc/self/fd names can be opened for writing though it has no name (as systemd and browsers do)."""
    with opened(f"{root}/file", os.O_RDONLY) as fd:
        os.unlink(f"{root}/file")
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            os.pwrite(again, b"W", 0)
        assert os.pread(fd, 100, 0) == b"Whole"
    assert os.listdir(root) == []


@case({"file": "whole"})
def map_after_unlink(root: str) -> None:
    with opened(f"{root}/file", os.O_RDWR) as fd:
        os.unlink(f"{root}/file")
        with mmap.mmap(fd, 5) as view:
            view[0:1] = b"W"
            assert os.pread(fd, 5, 0) == b"Whole"


@case({"file": "old", "other": "new"})
def replaced_while_open(root: str) -> None:
    with opened(f"{root}/file", os.O_RDWR) as fd:
        os.rename(f"{root}/other", f"{root}/file")
        os.pwrite(fd, b"still", 0)
        assert os.pread(fd, 10, 0) == b"still"
        assert os.fstat(fd).st_nlink == 0
        assert content(f"{root}/file") == b"new"


@case({"a": "linked", "b": HardLink("a")})
def one_of_two_names_unlinked_while_open(root: str) -> None:
    with opened(f"{root}/a", os.O_RDWR) as fd:
        os.unlink(f"{root}/a")
        os.pwrite(fd, b"L", 0)
        assert os.fstat(fd).st_nlink == 1
        assert content(f"{root}/b") == b"Linked"
        os.unlink(f"{root}/b")
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 10, 0) == b"Linked"


@case()
def temporary_files(root: str) -> None:
    """Made and unlinked at once, fifty at a time, all with the same name."""
    descriptors = []
    for number in range(50):
        fd = os.open(f"{root}/new", os.O_CREAT | os.O_EXCL | os.O_RDWR)
        os.unlink(f"{root}/new")
        os.write(fd, b"%d" % number)
        descriptors.append(fd)
    assert [os.pread(fd, 10, 0) for fd in descriptors] == [b"%d" % number for number in range(50)]
    assert len({os.fstat(fd).st_ino for fd in descriptors}) == 50
    for fd in descriptors:
        os.close(fd)
    assert os.listdir(root) == []


@case({"dir": {"sub": {"file": "deep"}}})
def the_whole_tree_removed_while_a_file_is_open(root: str) -> None:
    with opened(f"{root}/dir/sub/file", os.O_RDWR) as fd:
        os.unlink(f"{root}/dir/sub/file")
        os.rmdir(f"{root}/dir/sub")
        os.rmdir(f"{root}/dir")
        os.pwrite(fd, b"D", 0)
        assert os.pread(fd, 10, 0) == b"Deep"
    with fails(errno.ENOENT):
        os.stat(f"{root}/dir")
