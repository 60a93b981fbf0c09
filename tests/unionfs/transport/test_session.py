"""The life of a mount: ready when it returns, and ended cleanly by everything that can end it."""

from __future__ import annotations

import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounting import Union, server_of, unionfs
from tests.unionfs.waiting import PATIENCE_MS, ended, wait_until, wait_until_unmounted
from unionfs.linux import consts, mounts
from unionfs.transport import control, device, unmount

pytestmark = pytest.mark.needs("fuse")


def identity(union: Union) -> str:
    point = mounts.mount_of(union.path)
    assert point is not None
    return device.identity_of(point) or ""


@pytest.fixture
def union(mount_union: Callable[..., Union], tmp_path: Path) -> Union:
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "file").write_text("lower")
    return mount_union("low", "up")


@pytest.fixture
def server(union: Union) -> Iterator[control.Server]:
    found = server_of(union.path)
    yield found
    found.close()


# Mounting


def test_the_mount_answers_when_the_command_returns(union: Union) -> None:
    assert Path(union.path, "file").read_text() == "lower"
    point = mounts.mounted_at(os.path.realpath(union.path))
    assert point is not None
    assert (point.fstype, point.source) == ("fuse.unionfs", "unionfs")
    super_options = point.super_options.split(",")
    assert {"default_permissions", "allow_other", "user_id=0", "group_id=0"} <= set(super_options)
    assert not {"nosuid", "nodev", "noexec", "ro"} & set(point.options.split(","))


@pytest.mark.parametrize("transport", ["auto"])
@pytest.mark.parametrize("word", ["ro", "nosuid", "nodev", "noexec", "noatime"])
def test_options_of_mount_reach_the_kernel(mount_union: Callable[..., Union], word: str) -> None:
    union = mount_union("low", "up", options=(word,))
    point = mounts.mounted_at(os.path.realpath(union.path))
    assert point is not None
    assert word in point.options.split(",")


@pytest.mark.parametrize("branches", [("low", "up=ro"), ("low=rr", "up=rr")])
def test_a_union_without_a_writable_branch_is_mounted_read_only(
    mount_union: Callable[..., Union], branches: tuple[str, ...]
) -> None:
    union = mount_union(*branches)
    with pytest.raises(OSError, match="Read-only file system"):
        open(os.path.join(union.path, "new"), "w").close()


@pytest.mark.parametrize("form", ["br={0}/up=rw:{0}/low=ro", "lowerdir={0}/low,upperdir={0}/up,workdir={0}/work"])
def test_the_forms_of_aufs_and_overlayfs(tmp_path: Path, form: str) -> None:
    for name in ("low", "up", "work", "mnt"):
        (tmp_path / name).mkdir()
    (tmp_path / "low" / "file").write_text("lower")
    unionfs("mount", "none", str(tmp_path / "mnt"), "-o", form.format(tmp_path))
    try:
        (tmp_path / "mnt" / "new").write_text((tmp_path / "mnt" / "file").read_text())
    finally:
        unionfs("umount", str(tmp_path / "mnt"))
    assert (tmp_path / "up" / "new").read_text() == "lower"
    assert os.listdir(tmp_path / "work") == []


def test_any_name_will_do(tmp_path: Path) -> None:
    """Names are bytes to the kernel; only the separators of the option forms need an escape."""
    name = os.fsdecode(b"a b\t\n#\\:=,\xff\xc3\xa9")
    home = tmp_path / name
    for directory in ("low", "up", "mnt"):
        (home / directory).mkdir(parents=True)
    (home / "low" / name).write_text("lower")
    low, up = ("".join("\\" + c if c in "\\:=," else c for c in str(home / end)) for end in ("low", "up"))
    unionfs("mount", f"{low}:{up}", str(home / "mnt"), "--log", str(home / "log"))
    try:
        assert (home / "mnt" / name).read_text() == "lower"
        (home / "mnt" / name).chmod(0o600)
    finally:
        unionfs("umount", str(home / "mnt"))
    assert os.listdir(os.fsencode(home / "up")) == [os.fsencode(name)]
    assert "mounted" in (home / "log").read_text()


def test_programs_keep_their_set_user_id(union: Union, tmp_path: Path) -> None:
    program = Path(union.path, "id")
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    fd = os.open(program, os.O_PATH)  # another user may not pass through pytest's directories to reach it
    try:
        asked = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", f"/proc/self/fd/{fd}", "-u"],
            pass_fds=[fd], capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        os.close(fd)
    assert asked.stdout == "0\n"


def test_devices_are_devices(union: Union) -> None:
    os.mknod(os.path.join(union.path, "null"), 0o20666, os.makedev(1, 3))
    with open(os.path.join(union.path, "null"), "wb") as null:
        assert null.write(b"gone") == 4
    assert os.path.getsize(os.path.join(union.path, "null")) == 0


def mount_command(home: Path, transport: str) -> list[str]:
    """Of a union of `low` and `up` there, but for the mount point."""
    return [sys.executable, "-m", "unionfs", "mount", "-o", f"transport={transport}", f"{home}/low:{home}/up"]


def test_the_server_holds_nothing_of_its_caller(tmp_path: Path, transport: str) -> None:
    """Neither its streams nor other descriptors, nor its working directory, nor its session."""
    for name in ("low", "up", "mnt"):
        (tmp_path / name).mkdir()
    reader, writer = os.pipe()
    with subprocess.Popen(
        [*mount_command(tmp_path, transport), str(tmp_path / "mnt")],
        pass_fds=[writer], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as command:  # fmt: skip
        os.close(writer)
        assert command.stdout is not None
        assert command.stdout.read() == b""  # ends although the server lives on
    with os.fdopen(reader, "rb") as pipe:
        assert select.select([pipe], [], [], PATIENCE_MS / 1000)[0], "the server holds a descriptor of its caller's"
        assert pipe.read() == b""
    server = server_of(str(tmp_path / "mnt"))
    try:
        assert os.readlink(f"/proc/{server.pid}/cwd") == "/"
        assert os.getsid(server.pid) == server.pid
        assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (hard_limit(), hard_limit())
        os.kill(server.pid, signal.SIGHUP)
        assert os.listdir(tmp_path / "mnt") == []
    finally:
        server.close()
        unionfs("umount", str(tmp_path / "mnt"))


def test_a_caller_without_standard_streams(tmp_path: Path, transport: str) -> None:
    for name in ("low", "up", "mnt"):
        (tmp_path / name).mkdir()
    mount = [*mount_command(tmp_path, transport), str(tmp_path / "mnt")]
    subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *mount], check=True, timeout=60)
    (tmp_path / "mnt" / "new").write_text("new")
    unionfs("umount", str(tmp_path / "mnt"))


def hard_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def test_in_the_foreground(tmp_path: Path, transport: str) -> None:
    for name in ("low", "up", "mnt"):
        (tmp_path / name).mkdir()
    with subprocess.Popen(
        [*mount_command(tmp_path, transport), str(tmp_path / "mnt"), "-f"],
        stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stderr is not None
        first = server.stderr.readline()
        assert f"{tmp_path}/mnt: mounted" in first
        (tmp_path / "mnt" / "new").write_text("new")
        server.send_signal(signal.SIGINT)
        rest = server.stderr.read()
        assert server.wait(timeout=60) == 0, rest
    assert "Traceback" not in rest
    assert (tmp_path / "up" / "new").read_text() == "new"
    assert mounts.mounted_at(os.path.realpath(tmp_path / "mnt")) is None


# Ending


def end_by_unionfs(union: Union, server: control.Server) -> None:
    unionfs("umount", union.path)
    assert ended(server, 0), "the command returned before the server had ended"


def end_by_umount(union: Union, server: control.Server) -> None:
    subprocess.run(["umount", union.path], check=True)


def end_by_fusermount(union: Union, server: control.Server) -> None:
    subprocess.run(["fusermount3", "-u", union.path], check=True)


def end_by_sigterm(union: Union, server: control.Server) -> None:
    os.kill(server.pid, signal.SIGTERM)


def end_by_sigint(union: Union, server: control.Server) -> None:
    os.kill(server.pid, signal.SIGINT)


@pytest.mark.parametrize(
    "end",
    [end_by_unionfs, end_by_umount, end_by_fusermount, end_by_sigterm, end_by_sigint],
    ids=lambda end: end.__name__,
)
def test_every_way_to_end_it(
    union: Union, server: control.Server, end: Callable[[Union, control.Server], None]
) -> None:
    Path(union.path, "new").write_text("new")
    Path(union.path, "file").write_text("changed")
    sockets = {name for name in os.listdir(control.directory()) if name == identity(union)}
    assert sockets
    end(union, server)
    assert ended(server)
    assert not union.mounted
    assert not set(os.listdir(control.directory())) & sockets
    assert sorted(os.listdir(union.upper)) == ["file", "new"]
    union.check_log()
    union.mount()  # its branch is free
    assert Path(union.path, "file").read_text() == "changed"


def test_unmount_of_a_busy_mount_is_refused(union: Union, server: control.Server) -> None:
    with open(os.path.join(union.path, "file"), encoding="ascii") as file:
        done = subprocess.run(
            [sys.executable, "-m", "unionfs", "umount", union.path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "busy" in done.stderr
        assert union.path in done.stderr
        assert done.stderr.count("\n") == 1
        assert file.read() == "lower"
    assert not ended(server, 0)


def test_sigterm_of_a_busy_mount_loses_nothing(union: Union, server: control.Server) -> None:
    """It is out of sight at once and served until its users are done, who can still write."""
    with open(os.path.join(union.path, "mapped"), "w+b") as file:
        file.truncate(4096)
        memory = mmap.mmap(file.fileno(), 4096)
    with open(os.path.join(union.path, "written"), "w", encoding="ascii") as file:
        os.kill(server.pid, signal.SIGTERM)
        wait_until_unmounted(union)
        for line in range(500):  # long enough to meet a server that ends soon after
            file.write(f"{line}\n")
            file.flush()
        assert not ended(server, 0)
        memory[:5] = b"dirty"
        memory.close()
    assert ended(server)
    assert Path(union.upper, "written").read_text() == "".join(f"{line}\n" for line in range(500))
    assert Path(union.upper, "mapped").read_bytes()[:5] == b"dirty"
    union.check_log()


def test_a_second_sigterm_ends_it_under_its_users(union: Union, server: control.Server) -> None:
    fd = os.open(os.path.join(union.path, "file"), os.O_RDONLY)
    os.kill(server.pid, signal.SIGTERM)
    wait_until_unmounted(union)
    assert not ended(server, 0)
    os.kill(server.pid, signal.SIGTERM)
    assert ended(server)
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)
    union.check_log()


def test_unmount_waits_for_other_mount_namespaces(
    union: Union, server: control.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unmount, "DEADLINE_SECONDS", 0.2)
    script = "mount --make-rprivate / && echo ready && read line"
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=unchanged", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        with pytest.raises(TimeoutError, match="another mount namespace") as caught:
            unmount.unmount(union.path)
        assert str(server.pid) in str(caught.value)
        holder.communicate(b"\n")
    assert ended(server)


def test_a_killed_server_can_be_unmounted_and_its_socket_goes(union: Union, server: control.Server) -> None:
    socket = os.path.join(control.directory(), identity(union))
    os.kill(server.pid, signal.SIGKILL)
    assert ended(server)
    assert os.path.exists(socket)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(union.path)
    done = subprocess.run(
        [sys.executable, "-m", "unionfs", *union.command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"run 'unionfs umount {union.path}' first" in done.stderr
    unionfs("umount", union.path)
    assert not union.mounted
    union.mount()
    assert not os.path.exists(socket)


# Appends numbers, each fsynced before it is reported, until it cannot.
DILIGENT = """
import os, sys
try:
    with open(sys.argv[1], "ab") as file:
        for number in range(10**9):
            file.write(b"%d\\n" % number)
            file.flush()
            os.fsync(file.fileno())
            print(number, flush=True)
except OSError as error:
    print(error.strerror)
"""


def test_what_was_synced_outlives_a_killed_server(union: Union, server: control.Server) -> None:
    """Of a new file and of a copy-up. What the kernel writes by itself it may go on writing."""
    paths = [os.path.join(union.path, name) for name in ("new", "file")]
    writers = [
        subprocess.Popen([sys.executable, "-c", DILIGENT, path], stdout=subprocess.PIPE, text=True) for path in paths
    ]
    for writer in writers:
        assert writer.stdout is not None
        for line in writer.stdout:
            if line == "20\n":
                break
    os.kill(server.pid, signal.SIGKILL)
    synced = []
    for writer in writers:
        assert writer.stdout is not None
        *reported, last = writer.stdout.read().splitlines()  # communicate() leaves out what was read ahead
        writer.stdout.close()
        assert writer.wait(60) == 0
        assert last in ("Transport endpoint is not connected", "Software caused connection abort")
        synced.append([*range(21), *map(int, reported)])
    unionfs("umount", union.path)
    union.mount()
    for path, numbers, before in zip(paths, synced, ("", "lower"), strict=True):
        assert Path(path).read_text().startswith(before + "".join(f"{number}\n" for number in numbers))


def test_a_server_that_dies_while_mounting_leaves_no_mount(tmp_path: Path, transport: str) -> None:
    """The command takes away what the server can no longer."""
    for name in ("low", "up", "mnt"):
        (tmp_path / name).mkdir()
    script = (
        "import os, signal, sys\n"
        "from unionfs import cli\n"
        "from unionfs.transport import device\n"
        "attach = device.attach\n"
        "def attach_and_die(*arguments):\n"
        "    attach(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "device.attach = attach_and_die\n"
        "sys.exit(cli.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *mount_command(tmp_path, transport)[3:], str(tmp_path / "mnt")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "ended before the mount answered" in done.stderr
    assert mounts.mounted_at(os.path.realpath(tmp_path / "mnt")) is None


def test_a_moved_mount_ends_by_sigterm(union: Union, server: control.Server, tmp_path: Path) -> None:
    """It is unmounted where it is now, and what is where it was stays."""
    (tmp_path / "moved").mkdir()
    mounts.mount(union.path, str(tmp_path / "moved"), None, consts.MS_MOVE)
    mounts.mount("cover", union.path, "tmpfs")
    try:
        os.kill(server.pid, signal.SIGTERM)
        assert ended(server)
        point = mounts.mounted_at(os.path.realpath(union.path))
        assert point is not None
        assert point.fstype == "tmpfs"
        assert mounts.mounted_at(os.path.realpath(tmp_path / "moved")) is None
    finally:
        mounts.umount2(union.path)


def test_sigterm_leaves_alone_what_covers_the_mount(union: Union, server: control.Server) -> None:
    mounts.mount("cover", union.path, "tmpfs")
    os.kill(server.pid, signal.SIGTERM)
    wait_until(lambda: "covered by another mount" in Path(union.log).read_text())
    point = mounts.mounted_at(os.path.realpath(union.path))
    assert point is not None
    assert point.fstype == "tmpfs"
    mounts.umount2(union.path)
    assert Path(union.path, "file").read_text() == "lower"
    unionfs("umount", union.path)


# Requests that fail, and requests that take long

FAULTY = """
import os, sys
from unionfs import cli
from unionfs.transport import direct, session
from unionfs.union.fs import UnionFs

class Faulty(UnionFs):
    def readlink(self, ino):
        raise RuntimeError("a mistake of ours")
    def setattr(self, ino, **wish):
        self._wait()
        return super().setattr(ino, **wish)
    def fsync(self, fh, datasync):
        self._wait()
    def _wait(self):
        self._stack.waiting.begins()
        open(os.environ["GATE"]).read()

direct.UnionFs = session.UnionFs = Faulty
sys.exit(cli.main())
"""


@pytest.fixture
def faulty(tmp_path: Path, transport: str) -> Iterator[Path]:
    """A union whose readlink fails in an unforeseen way, and whose setattr and fsync wait until the fifo `gate` has
    been opened and closed."""
    for name in ("low", "up", "mnt"):
        (tmp_path / name).mkdir()
    (tmp_path / "low" / "file").write_text("lower")
    (tmp_path / "low" / "link").symlink_to("file")
    os.mkfifo(tmp_path / "gate")
    command = ["mount", f"{tmp_path}/low:{tmp_path}/up", str(tmp_path / "mnt"), "--log", str(tmp_path / "log")]
    subprocess.run(
        [sys.executable, "-c", FAULTY, *command, "-o", f"transport={transport}"],
        env={**os.environ, "GATE": str(tmp_path / "gate")},
        check=True,
    )
    yield tmp_path / "mnt"
    unionfs("umount", str(tmp_path / "mnt"))


def test_an_unforeseen_exception_is_eio_and_the_session_goes_on(faulty: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        os.readlink(faulty / "link")
    assert (faulty / "file").read_text() == "lower"
    log = (faulty.parent / "log").read_text()
    assert "RuntimeError: a mistake of ours" in log
    assert "readlink failed in an unforeseen way" in log.lower()


def test_slow_work_stops_nobody_else(faulty: Path) -> None:
    """A chmod that copies up is held back; whatever else is asked meanwhile is answered."""
    with subprocess.Popen(["chmod", "600", str(faulty / "file")]) as chmod:
        with open(faulty.parent / "gate", "w"):  # returns when the server is there; it waits until we close
            others = ["sh", "-c", "ls; echo new > new; cat new file; mkdir dir; mv new dir; rm -r dir"]
            done = subprocess.run(others, cwd=faulty, capture_output=True, text=True, timeout=60, check=True)
            assert done.stdout == "file\nlink\nnew\nlower"
            assert chmod.poll() is None
        assert chmod.wait(timeout=60) == 0
    assert (faulty / "file").stat().st_mode & 0o777 == 0o600


def test_slow_work_is_answered_although_another_caller_was_killed(faulty: Path) -> None:
    """A killed caller's request is taken back, perhaps just before the server reads it. Over pyfuse3 and without
    transport.interrupt one turn in six hangs, so thirty find it."""
    lookups = (
        "import os, sys\n"
        "for n in range(10**9):\n"
        "    os.path.exists(f'{sys.argv[1]}{n}')\n"
        "    if n == 50: print(flush=True)\n"
    )
    file = os.open(faulty / "new", os.O_RDWR | os.O_CREAT)
    try:
        for turn in range(30):
            with subprocess.Popen(
                [sys.executable, "-c", lookups, str(faulty / f"absent{turn}.")], stdout=subprocess.PIPE
            ) as caller:
                assert caller.stdout is not None
                caller.stdout.readline()
                waiting = threading.Thread(target=os.fsync, args=[file])
                waiting.start()
                with open(faulty.parent / "gate", "w"):
                    caller.kill()
                    caller.wait()
                waiting.join(timeout=60)
                assert not waiting.is_alive(), f"turn {turn}: the fsync was not answered"
    finally:
        os.close(file)
