"""Files that the kernel reads and writes by itself: what each open file sees around a copy-up, and that no lower file
is ever written to (unionfs/serve/passthrough.py)."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounting import Union
from unionfs.linux import consts, mounts
from unionfs.transport import info

pytestmark = [pytest.mark.needs("fuse", "passthrough"), pytest.mark.parametrize("transport", ["direct"])]

OLD, NEW = b"lower" * 1000, b"UPPER"


@pytest.fixture(params=["passthrough=all", "posix"])
def strict(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "posix")


@pytest.fixture
def union(tmp_path: Path, mount_union: Callable[..., Union], strict: bool) -> Iterator[Union]:
    low = tmp_path / "low"
    low.mkdir()
    for name in ("file", "other"):
        (low / name).write_bytes(OLD)
    os.link(low / "file", low / "second-name")
    os.chmod(low / "file", 0o644)
    found = mount_union("low", "up", options=("posix" if strict else "passthrough=all",))
    yield found
    assert (low / "file").read_bytes() == OLD, "the lower layer was written to"
    assert (low / "other").read_bytes() == OLD


@contextlib.contextmanager
def opened(path: str | Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def requests(union: Union) -> dict[str, int]:
    return dict(info.ask(union.path)["requests"] or {})


def since(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}


def name(union: Union, which: str = "file") -> str:
    return os.path.join(union.path, which)


def test_the_kernel_reads_and_writes(union: Union) -> None:
    """No READ and no WRITE reaches the server. Under `posix` a small lower file comes with its first open."""
    before = requests(union)
    assert Path(name(union)).read_bytes() == OLD
    with opened(name(union, "new"), os.O_CREAT | os.O_RDWR) as fd:
        assert os.write(fd, b"data" * 4096) == 16384
        assert os.pread(fd, 4, 4) == b"data"
    with open(name(union, "other"), "r+b") as file:
        file.write(NEW)
        file.seek(0)
        assert file.read() == NEW + OLD[5:]
    done = since(before, requests(union))
    assert not {"READ", "WRITE"} & done.keys()


def test_an_old_reader_beside_a_writer(union: Union, strict: bool) -> None:
    with opened(name(union), os.O_RDONLY) as reader:
        assert os.pread(reader, 5, 0) == b"lower"
        with opened(name(union), os.O_RDWR) as writer:
            assert os.pwrite(writer, NEW, 0) == 5
            assert os.pread(writer, 5, 0) == NEW
            assert os.pread(reader, 5, 0) == (NEW if strict else b"lower")
            assert Path(name(union)).read_bytes()[:5] == NEW
            assert os.fstat(reader).st_ino == os.fstat(writer).st_ino == os.stat(name(union)).st_ino
    assert Path(name(union)).read_bytes() == NEW + OLD[5:]


def test_an_old_reader_sees_later_attributes(union: Union) -> None:
    with opened(name(union), os.O_RDONLY) as reader:
        with opened(name(union), os.O_WRONLY | os.O_APPEND) as writer:
            os.write(writer, NEW)
        assert os.fstat(reader).st_size == os.stat(name(union)).st_size == len(OLD) + 5
        os.chmod(name(union), 0o600)
        assert stat.S_IMODE(os.fstat(reader).st_mode) == 0o600
        os.fchmod(reader, 0o640)
        assert stat.S_IMODE(os.stat(name(union)).st_mode) == 0o640


def test_another_name_leads_to_the_new_file(union: Union) -> None:
    with opened(name(union), os.O_RDONLY):
        os.stat(name(union, "second-name"))
        with opened(name(union), os.O_WRONLY) as writer:
            os.pwrite(writer, NEW, 0)
            assert Path(name(union, "second-name")).read_bytes()[:5] == NEW
            with opened(name(union, "second-name"), os.O_WRONLY) as second:
                os.pwrite(second, b"twice", 0)
            assert Path(name(union)).read_bytes()[:5] == b"twice"
            same = os.stat(name(union, "second-name")), os.stat(name(union))
            assert same[0].st_ino == same[1].st_ino
            assert same[0].st_nlink == same[1].st_nlink == 2


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_a_map_of_the_lower_file(union: Union, strict: bool, closed: bool, writable: bool) -> None:
    """A map keeps the file that it was made of, also when the descriptor is closed."""
    with contextlib.ExitStack() as at_end:
        reader = at_end.enter_context(opened(name(union), os.O_RDONLY))
        old = mmap.mmap(reader, len(OLD), prot=mmap.PROT_READ)
        assert old[:5] == b"lower"
        if closed:
            at_end.close()
        at_end.enter_context(old)
        with opened(name(union), os.O_RDWR) as writer:
            if writable:
                with mmap.mmap(writer, len(OLD)) as new:
                    new[:5] = NEW
                    new.flush()
                    assert new[:5] == NEW
            else:
                os.pwrite(writer, NEW, 0)
            assert old[:5] == (NEW if strict else b"lower")
        assert Path(name(union)).read_bytes() == NEW + OLD[5:]


def test_truncated_by_name_beside_a_reader(union: Union, strict: bool) -> None:
    with opened(name(union), os.O_RDONLY) as reader:
        os.truncate(name(union), 3)
        assert Path(name(union)).read_bytes() == b"low"
        assert os.pread(reader, 10, 0) == (b"low" if strict else b"lowerlower")
        with opened(name(union), os.O_WRONLY | os.O_TRUNC) as writer:
            os.write(writer, b"x")
        assert Path(name(union)).read_bytes() == b"x"


def test_appending_beside_a_reader(union: Union) -> None:
    with opened(name(union), os.O_RDONLY), opened(name(union), os.O_WRONLY | os.O_APPEND) as one:
        with opened(name(union), os.O_WRONLY | os.O_APPEND) as two:
            os.write(one, b"1")
            os.write(two, b"2")
            os.write(one, b"3")
        assert Path(name(union)).read_bytes() == OLD + b"123"


def test_unlinked_while_open(union: Union) -> None:
    with opened(name(union, "other"), os.O_RDWR) as fd, opened(name(union, "other"), os.O_RDONLY) as reader:
        os.unlink(name(union, "other"))
        os.pwrite(fd, NEW, 0)
        assert os.pread(reader, 5, 0) == NEW
        assert os.fstat(fd).st_nlink == 0
        os.fsync(fd)
        os.ftruncate(fd, 2)
        assert os.pread(reader, 9, 0) == NEW[:2]
    assert not os.path.exists(name(union, "other"))


def test_opened_again_through_proc(union: Union, strict: bool) -> None:
    """There is no path to look up again: for reading the open file's own data, for writing ESTALE (never the lower)."""
    with opened(name(union), os.O_RDONLY) as reader:
        again = f"/proc/self/fd/{reader}"
        if strict:
            with opened(again, os.O_WRONLY) as writer:
                os.pwrite(writer, NEW, 0)
        else:
            with pytest.raises(OSError) as refused, opened(again, os.O_WRONLY):
                pass
            assert refused.value.errno == errno.ESTALE
        for _ in range(3):
            with opened(again, os.O_RDONLY) as second:
                assert os.pread(second, 5, 0) == (NEW if strict else b"lower")
    with opened(name(union), os.O_WRONLY) as writer:
        os.pwrite(writer, NEW, 0)
    assert Path(name(union)).read_bytes() == NEW + OLD[5:]


def test_a_program_runs_and_is_busy(union: Union) -> None:
    program = name(union, "sleep")
    with open("/bin/sleep", "rb") as source, open(program, "wb") as copy:
        copy.write(source.read())
    os.chmod(program, 0o755)
    with subprocess.Popen([program, "60"]) as running:
        try:
            with pytest.raises(OSError) as refused, opened(program, os.O_WRONLY):
                pass
            assert refused.value.errno == errno.ETXTBSY
        finally:
            running.kill()
    with opened(program, os.O_WRONLY), pytest.raises(OSError) as refused:
        subprocess.run([program, "0"], check=True)
    assert refused.value.errno == errno.ETXTBSY


def test_warm_trees_are_served_by_the_kernel_alone(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    for directory in range(5):
        (tmp_path / "low" / str(directory)).mkdir(parents=True)
        for file in range(20):
            (tmp_path / "low" / str(directory) / str(file)).write_text("text")
        os.symlink("0", tmp_path / "low" / str(directory) / "link")
    union = mount_union("low", "up")
    tour = ["find", union.path, "-printf", "%p %s %m %l\\n"]
    first = subprocess.run(tour, capture_output=True, check=True).stdout
    subprocess.run(["stat", f"{union.path}/no-such-name"], capture_output=True, check=False)
    # The kernel asks once more for the attributes of what it read: the access time (fs/fuse/dir.c).
    subprocess.run(tour, capture_output=True, check=True)
    before = requests(union)
    assert subprocess.run(tour, capture_output=True, check=True).stdout == first
    subprocess.run(["stat", f"{union.path}/no-such-name"], capture_output=True, check=False)
    asked = since(before, requests(union))
    assert asked.pop("STATFS", 0) <= 1, "find(1) asks once where directories count their links: it may go by that"
    assert asked == {}
    Path(union.path, "0", "new").write_text("new")  # a change makes the listing of its directory be asked for again
    assert "new" in os.listdir(os.path.join(union.path, "0"))


def test_set_user_id_goes_with_a_write_by_another(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    """Whether it was set before the file was opened or since, and whoever writes."""
    union = mount_union("low", "up")
    path = name(union)
    Path(path).write_bytes(OLD)
    write_as_nobody = ["setpriv", "--reuid=65534", "--clear-groups", "echo", "changed"]
    os.chmod(path, 0o6777)
    with opened(path, os.O_RDONLY), opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"by root")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o6777, "root may keep them"
        subprocess.run(write_as_nobody, stdout=fd, check=True)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o777
    with opened(path, os.O_WRONLY) as fd:
        os.chmod(path, 0o6777)
        subprocess.run(write_as_nobody, stdout=fd, check=True)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o777


def test_no_backing_file_is_left(union: Union) -> None:
    """What is kept for the next open goes with the file."""
    for number in range(50):
        path = name(union, f"new{number}")
        with open(path, "w") as file:
            file.write("text")
        os.unlink(path)
    free = os.statvfs(union.path).f_bfree
    with open(name(union, "big"), "wb") as file:
        file.write(bytes(1 << 24))
        os.fsync(file.fileno())
    os.unlink(name(union, "big"))
    os.sync()
    assert os.statvfs(union.path).f_bfree >= free - (1 << 23) // os.statvfs(union.path).f_frsize


def test_what_a_map_writes_shows_in_the_times(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    union = mount_union("low", "up")
    path = name(union)
    Path(path).write_bytes(OLD)
    os.utime(path, (1, 1))
    assert os.stat(path).st_mtime == 1
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, len(OLD)) as view:
        os.utime(path, (1, 1))
        assert os.stat(path).st_mtime == 1
        view[:5] = NEW
        assert os.stat(path).st_mtime == os.stat(tmp_path / "up" / "file").st_mtime != 1


def test_an_open_file_costs_the_server_no_descriptor(union: Union) -> None:
    server = info.ask(union.path)["pid"]
    for number in range(100):
        Path(name(union, str(number))).write_text("text")
    before = len(os.listdir(f"/proc/{server}/fd"))
    with contextlib.ExitStack() as at_end:
        for number in range(100):
            at_end.enter_context(opened(name(union, str(number)), os.O_RDWR))
        fd = at_end.enter_context(opened(name(union, "0"), os.O_RDWR))
        assert len(os.listdir(f"/proc/{server}/fd")) < before + 50
        os.fsync(fd)
        os.posix_fallocate(fd, 0, 8192)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0
        assert os.fstat(fd).st_size == 8192


RUN_AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.mark.parametrize("opening", ["conv=notrunc", "conv=fsync"])
def test_a_program_written_by_another_does_not_run_as_its_owner(
    tmp_path: Path, mount_union: Callable[..., Union], strict: bool, opening: str
) -> None:
    """The kernel itself must learn that the set-user-ID bit went with the write: execve(2) goes by what it knows."""
    union = mount_union("low", "up", options=("transport=direct", "posix" if strict else "passthrough=all"))
    program = name(union, "id")
    for directory in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(directory, 0o755)
    Path(program).write_bytes(Path("/usr/bin/id").read_bytes())
    os.chmod(program, 0o4777)
    assert subprocess.run([*RUN_AS_NOBODY, program, "-u"], capture_output=True, text=True).stdout == "0\n"
    copy = ["dd", "if=/usr/bin/id", f"of={program}", "bs=1M", opening, "status=none"]
    subprocess.run([*RUN_AS_NOBODY, *copy], check=True)
    assert subprocess.run([*RUN_AS_NOBODY, program, "-u"], capture_output=True, text=True).stdout == "65534\n"


def test_set_id_goes_with_whatever_changes_the_data(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    union = mount_union("low", "up", options=("transport=direct",))
    for directory in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(directory, 0o755)
    Path(name(union, "source")).write_bytes(OLD)
    copy = "import os, sys; os.copy_file_range(os.open(sys.argv[1][:-4] + 'source', 0), os.open(sys.argv[1], 1), 9)"
    changes = {"allocate": ["fallocate", "-p", "-l", "4096"], "copy": [sys.executable, "-c", copy]}
    for change, command in changes.items():
        path = name(union, "file")
        Path(path).write_bytes(OLD)
        os.chmod(path, 0o6777)
        subprocess.run([*RUN_AS_NOBODY, *command, path], check=True)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o777, change


def test_a_file_mounted_elsewhere_stays_open_to_all(union: Union, tmp_path: Path, strict: bool) -> None:
    """Nothing is looked up on the way to it, so it keeps its old number for ever."""
    target = tmp_path / "target"
    target.write_text("")
    mounts.mount(name(union), str(target), None, consts.MS_BIND)
    try:
        with opened(target, os.O_RDONLY) as reader:
            with opened(name(union), os.O_WRONLY | os.O_APPEND) as writer:
                os.write(writer, NEW)
            assert os.pread(reader, 5, len(OLD)) == (NEW if strict else b"")
        assert target.read_bytes() == OLD + NEW
        with opened(target, os.O_WRONLY | os.O_APPEND) as writer:
            os.write(writer, NEW)
            assert Path(name(union)).read_bytes() == OLD + NEW + NEW
            assert os.stat(name(union)).st_size == os.stat(target).st_size == len(OLD) + 10
    finally:
        mounts.umount2(str(target))


def test_link_counts_under_both_numbers(union: Union, tmp_path: Path) -> None:
    path, second = name(union), name(union, "second-name")
    os.stat(second)
    with opened(path, os.O_RDONLY), opened(path, os.O_WRONLY) as writer:
        os.write(writer, NEW)
    assert (os.stat(path).st_nlink, os.stat(second).st_nlink) == (2, 2)
    os.unlink(second)
    counted = subprocess.run(["stat", "-c", "%h", path], capture_output=True, text=True, check=True).stdout
    assert counted == "1\n"


@pytest.mark.needs("program:chattr")
def test_an_append_only_file_is_only_appended_to(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    union = mount_union("low", "up", options=("transport=direct",))
    path = name(union)
    Path(path).write_bytes(OLD)
    subprocess.run(["chattr", "+a", path], check=True)
    try:
        assert Path(path).read_bytes() == OLD
        for _ in range(2):
            with pytest.raises(PermissionError), opened(path, os.O_WRONLY):
                pass
            with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
                os.write(fd, NEW)
        assert Path(path).read_bytes() == OLD + NEW + NEW
    finally:
        subprocess.run(["chattr", "-a", path], check=True)


def test_a_copy_of_an_old_descriptor_is_what_it_reads(union: Union, tmp_path: Path, strict: bool) -> None:
    """By copy_file_range(2) and with SEEK_DATA, for which the kernel asks us."""
    with opened(name(union), os.O_RDONLY) as reader:
        with opened(name(union), os.O_WRONLY) as writer:
            os.pwrite(writer, NEW, 0)
            os.ftruncate(writer, 1 << 20)
        expected = os.pread(reader, 1 << 20, 0)
        assert expected == (NEW + OLD[5:] + bytes((1 << 20) - len(OLD)) if strict else OLD)
        with opened(name(union, "copy"), os.O_CREAT | os.O_WRONLY) as copy:
            while os.copy_file_range(reader, copy, 1 << 20):
                pass
        assert Path(name(union, "copy")).read_bytes() == expected
        cp = ["cp", "--sparse=auto", f"/proc/self/fd/{reader}", name(union, "by-cp")]
        subprocess.run(cp, pass_fds=[reader], check=True)
        assert Path(name(union, "by-cp")).read_bytes()[: len(OLD)] == expected[: len(OLD)]


@pytest.mark.needs("program:setfacl")
def test_an_acl_by_an_outsider_takes_set_group_id(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    union = mount_union("low", "up", options=("transport=direct",))
    for directory in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(directory, 0o755)
    path = name(union)
    Path(path).write_bytes(OLD)
    for group, kept in ((0, False), (65534, True)):
        os.chown(path, 65534, group)
        os.chmod(path, 0o2755)
        subprocess.run([*RUN_AS_NOBODY, "setfacl", "-m", "u:1:r", path], check=True)
        assert bool(os.stat(path).st_mode & stat.S_ISGID) == kept


@pytest.mark.needs("program:git")
def test_a_warm_git_status_asks_for_what_git_opens(tmp_path: Path, mount_union: Callable[..., Union]) -> None:
    """Its own files: each is opened, and its access time is unknown to the kernel since it was read the last time."""
    union = mount_union("low", "up", options=("transport=direct",))
    tree = os.path.join(union.path, "tree")
    os.mkdir(tree)
    for number in range(50):
        Path(tree, str(number)).write_text("text")
        os.utime(os.path.join(tree, str(number)), (1, 1))
    nothing = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", **nothing}

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", tree, *words], env=environment, capture_output=True, check=True)

    git("init")
    git("add", ".")
    for _ in range(3):
        git("status")
    before = requests(union)
    git("status")
    done = since(before, requests(union))
    assert set(done) <= {"OPEN", "RELEASE", "GETATTR"}
    assert max(done.values()) < 50, "the files of the tree are not asked for"
