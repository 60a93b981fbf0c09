"""Unions by mount(8), umount(8) and fstab(5), which call programs of ours that they look for in /sbin."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.mounting import TRANSPORTS
from tests.unionfs.command import AS_NOBODY, bare_dev
from unionfs.linux import consts, mounts
from unionfs.transport import info

pytestmark = pytest.mark.needs("fuse", "overlay", "tmpfs", "trusted-xattr")

PROGRAM = os.path.join(sysconfig.get_path("scripts"), "unionfs")


@pytest.fixture(autouse=True)
def sbin(tmp_path: Path) -> Iterator[Path]:
    """/sbin with our links in it, until the test ends."""
    layer = tmp_path / "sbin"
    layer.mkdir()
    mounts.mount("sbin", str(layer), "tmpfs")
    try:
        (layer / "upper").mkdir()
        (layer / "work").mkdir()
        options = f"lowerdir=/usr/sbin,upperdir={layer}/upper,workdir={layer}/work"
        mounts.mount("sbin", "/usr/sbin", "overlay", 0, options)
        try:
            for name in ("mount.fuse.unionfs", "umount.fuse.unionfs"):
                os.symlink(PROGRAM, f"/usr/sbin/{name}")
            yield Path("/usr/sbin")
        finally:
            mounts.umount2("/usr/sbin", consts.MNT_DETACH)
    finally:
        mounts.umount2(str(layer), consts.MNT_DETACH)


@pytest.fixture(autouse=True)
def unmounted(place: Path) -> Iterator[None]:
    yield
    while mounts.mounted_at(f"{place}/mnt"):
        call("umount", "mnt")


def call(*words: str, prefix: Sequence[str] = (), fails: int = 0, **more: object) -> str:
    """What is said on both streams."""
    done = subprocess.run(
        [*prefix, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60,
        **more,  # type: ignore[call-overload]
    )
    assert done.returncode == fails, f"{words}: {done.returncode}: {done.stdout}"
    return str(done.stdout)


def point(path: str = "mnt") -> mounts.MountPoint:
    found = mounts.mounted_at(os.path.realpath(path))
    assert found is not None
    return found


def shown(path: str = "mnt") -> set[str]:
    """Flags of the mount and of its file system."""
    return {*point(path).options.split(","), *point(path).super_options.split(",")}


MOUNT = ("mount", "-t", "fuse.unionfs")


# Mounting


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("source", "options"),
    [("low:up", ""), ("none", "br=up=rw:low=ro"), ("a name", "lowerdir=low,upperdir=up,workdir=work")],
)
def test_the_forms_of_branches(source: str, options: str, transport: str) -> None:
    os.mkdir("work")
    said = call(*MOUNT, source, "mnt", "-o", f"transport={transport},{options}".removesuffix(","))
    assert said == ""
    assert (point().source, point().fstype) == (source, "fuse.unionfs")
    facts = info.ask("mnt")
    assert [os.path.basename(branch["path"]) for branch in facts["branches"]] == ["up", "low"]
    assert facts["transport"]["name"] == transport
    Path("mnt/file").write_text("changed")
    assert call("umount", "mnt") == ""
    assert sorted(os.listdir("up")) == ["file"], "the work area is gone when umount(8) returns"


def test_options_of_mount8() -> None:
    """Those that are for mount(8) itself it may pass on."""
    options = "noatime,nodev,nosuid,noexec,nosymfollow,_netdev,nofail,user,users,owner,group,noauto,x-a=b,X-b,comment=c"
    call(*MOUNT, "low:up", "mnt", "-o", options)
    assert {"rw", "noatime", "nodev", "nosuid", "noexec", "nosymfollow"} <= shown()
    call("umount", "mnt")
    for words in ("ro,nodiratime", "defaults,strictatime,ro"):
        call(*MOUNT, "low:up", "mnt", "-o", words)
        assert "ro" in shown()
        call("umount", "mnt")
    call(*MOUNT, "low=ro:up=ro", "mnt")
    assert "ro" in shown()


@pytest.mark.parametrize(
    ("options", "word"),
    [("lazytime", "lazytime"), ("iversion", "iversion"), ("mand", "mand"), ("frobnicate", "frobnicate"),
     ("br=up", "br=up"), ("transport=x", "transport=x"), ("subtype=a b", "subtype")],
)  # fmt: skip
def test_options_that_are_refused(options: str, word: str) -> None:
    said = call(*MOUNT, "low:up", "mnt", "-o", options, fails=1)
    assert said.startswith("mount.fuse.unionfs: ")
    assert said.count("\n") == 1
    assert word in said
    assert mounts.mounted_at(os.path.realpath("mnt")) is None


def test_what_cannot_be_mounted() -> None:
    said = call(*MOUNT, "absent:up", "mnt", fails=32)
    assert said.startswith("mount.fuse.unionfs: ")
    assert said.count("\n") == 1
    assert "absent" in said
    call(*MOUNT, "low:up", "mnt")
    assert "already mounted" in call(*MOUNT, "low:up", "mnt", fails=32)


def test_fake_verbose_and_sloppy() -> None:
    assert call(*MOUNT, "-f", "-v", "low:up", "mnt") == (
        f"mount.fuse.unionfs: low:up could be mounted on {os.path.realpath('mnt')}.\n"
    )
    assert mounts.mounted_at(os.path.realpath("mnt")) is None
    assert "absent" in call(*MOUNT, "-f", "absent:up", "mnt", fails=32)
    said = call(*MOUNT, "-s", "-n", "-v", "-o", "frobnicate=1,nodev", "low:up", "mnt")
    assert said == f"mount.fuse.unionfs: low:up mounted on {os.path.realpath('mnt')}.\n"
    assert "nodev" in shown()


HOSTILE = 'a,b c\n0 0 é"d"\\(deleted)'


def test_names_that_are_shown(sbin: Path) -> None:
    escaped = HOSTILE.replace("\\", "\\\\").replace(",", "\\,").replace('"', "'")
    call(*MOUNT, "low:up", "mnt", "-o", f"fsname={escaped},subtype=my.own")
    assert (point().source, point().fstype) == (HOSTILE.replace('"', "'"), "fuse.my.own")
    call("umount", "mnt")
    call(*MOUNT, HOSTILE, "mnt", "-o", "lowerdir=low,upperdir=up")
    assert point().source == HOSTILE
    call("umount", "mnt")
    os.symlink(PROGRAM, sbin / "mount.fuse.mine")
    os.symlink(PROGRAM, sbin / "umount.fuse.mine")
    call("mount", "-t", "fuse.mine", "low:up", "mnt")
    assert (point().source, point().fstype) == ("low:up", "fuse.mine")
    assert "low:up" in call("df", "mnt")
    assert call("umount", "mnt") == ""
    long = "l" * 250
    os.mkdir(long)
    call(*MOUNT, f"low:{long}:up", "mnt")
    assert point().source == "unionfs", "256 bytes are more than the kernel takes"


def test_a_mount_at_two_places() -> None:
    """umount(8) takes one away, and has nothing to wait for."""
    call(*MOUNT, "low:up", "mnt")
    os.mkdir("second")
    os.mkdir("third")
    call("mount", "--bind", "mnt", "second")
    call("mount", "--bind", "mnt/", "third")
    assert call("umount", "mnt") == ""
    assert Path("second/file").read_text() == "content"
    said = call(PROGRAM, "umount", "third", fails=1)
    assert f"it is also mounted at {os.path.realpath('second')}" in said
    assert mounts.mounted_at(os.path.realpath("third")) is None
    assert call("umount", "second") == ""


@pytest.mark.needs("program:unshare")
def test_in_another_namespace() -> None:
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as there:
        assert there.stdout is not None and there.stdin is not None
        there.stdout.readline()
        here = os.getcwd()
        program = "/usr/sbin/mount.fuse.unionfs"
        call(program, f"{here}/low:{here}/up", f"{here}/mnt", "-N", str(there.pid))
        assert mounts.mounted_at(f"{here}/mnt") is None
        assert [p.fstype for p in mounts.mountinfo(there.pid) if p.target == f"{here}/mnt"] == ["fuse.unionfs"]
        prefix = ["nsenter", f"--mount=/proc/{there.pid}/ns/mnt"]
        assert call("cat", f"{here}/mnt/file", prefix=prefix) == "content"
        call("umount", f"{here}/mnt", prefix=prefix)
        there.communicate(b"\n")
    assert "absent" in call(program, "low:up", "mnt", "-N", "absent", fails=32)


NAMES: list[Callable[[], object]] = [
    lambda: os.close(os.open("mnt/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    lambda: os.mkdir("mnt/d"),
    lambda: os.mknod("mnt/p", 0o600 | stat.S_IFIFO),
    lambda: os.symlink("f", "mnt/l"),
    lambda: os.link("mnt/f", "mnt/d/g"),
    lambda: os.rename("mnt/d/g", "mnt/g"),
    lambda: os.unlink("mnt/g"),
    lambda: os.rmdir("mnt/d"),
]
METADATA: list[Callable[[], object]] = [
    lambda: os.chmod("mnt/f", 0o640),
    lambda: os.utime("mnt/f", (1, 1)),
    lambda: os.setxattr("mnt/f", "user.a", b"1"),
    lambda: os.removexattr("mnt/f", "user.a"),
    lambda: os.truncate("mnt/f", 5),
]


@contextlib.contextmanager
def traced(calls: str) -> Iterator[None]:
    """The file `trace` has these system calls of the server, each once it was made."""
    words = ["strace", "-f", "-e", f"trace={calls}", "-o", "trace", "-p", str(info.ask("mnt")["pid"])]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            yield
        finally:
            tracer.terminate()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("options", "expected"), [("sync", [*NAMES, *METADATA]), ("dirsync", NAMES), ("async", []), ("sync,async", [])]
)
@pytest.mark.needs("ptrace")
def test_what_is_on_the_disk_at_once(transport: str, options: str, expected: list[Callable[[], object]]) -> None:
    """Each change is on the disk when it has been answered."""
    call(*MOUNT, "low:up", "mnt", "-o", f"{options},transport={transport}")
    assert {"sync", "dirsync"} & shown() == {"sync", "dirsync"} & {options}
    synced: list[Callable[[], object]] = []
    with traced("syncfs"):
        for change in (*NAMES, *METADATA):
            before = Path("trace").read_text().count("syncfs(")
            change()
            if Path("trace").read_text().count("syncfs(") > before:
                synced.append(change)
    assert synced == expected


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.needs("ptrace")
def test_data_is_on_the_disk_at_once(transport: str) -> None:
    """Also of a file that would otherwise be written to by the kernel alone."""
    Path("up/f").touch()
    call(*MOUNT, "low:up", "mnt", "-o", f"sync,transport={transport}")
    with traced("fsync,fdatasync"), open("mnt/f", "r+b", 0) as file:
        for _ in range(3):
            file.write(b"data")
    assert Path("trace").read_text().count("sync(") == 3


# fstab


@pytest.fixture
def fstab(place: Path) -> Callable[..., list[str]]:
    """`fstab(line)` are the words by which mount(8) reads it."""

    def write(*lines: str) -> list[str]:
        (place / "fstab").write_text("".join(f"{line}\n" for line in lines))
        return ["mount", "-T", f"{place}/fstab"]

    return write


def test_a_line_of_fstab(place: Path, fstab: Callable[..., list[str]]) -> None:
    """At boot there is neither PATH nor HOME, the directory is /, and nobody has opened the standard streams."""
    os.mkdir("with space")
    space = f"{place}/with\\040space"
    mount = fstab(f"{place}/low:{place}/up {place}/mnt fuse.unionfs noatime,nofail,x-systemd.requires=a,_netdev 0 0",
                  f"none {space} fuse.unionfs br={place}/low=ro,noauto 0 0")  # fmt: skip
    bare = ["env", "-i", "sh", "-c", 'cd /; exec "$@" <&- >&- 2>&-', "sh"]
    path = subprocess.run(["which", "mount"], capture_output=True, text=True, check=True).stdout.strip()
    mount[0] = path
    for _ in range(2):  # the second finds it mounted
        call(*mount, "-a", prefix=bare)
        assert [p.source for p in mounts.mountinfo() if p.target == f"{place}/mnt"] == [f"{place}/low:{place}/up"]
    assert "noatime" in shown()
    assert Path("mnt/file").read_text() == "content"
    call(*mount, f"{place}/with space", prefix=bare)
    assert "ro" in shown("with space")
    call("umount", "with space")
    call("umount", "-v", "mnt")
    assert mounts.mounted_at(f"{place}/mnt") is None


WISHES = {"mnt": "user", "roots": "users", "run": "user,strictatime", "nofollow": "user,nosymfollow"}


@pytest.mark.needs("program:unshare", "program:setpriv", "program:fusermount3")
@pytest.mark.skipif(not os.path.exists("/etc/fstab"), reason="there is no /etc/fstab to put another one over")
def test_a_line_for_users(nobodys: Path, fstab: Callable[..., list[str]]) -> None:
    """mount(8) is root's and drops that before it calls us: the user mounts with his own rights, or not at all."""
    for name in ("run", "nofollow"):
        os.mkdir(name)
        os.chown(name, 65534, 65534)
    os.mkdir("roots")
    lines = [
        f"{nobodys}/low:{nobodys}/up {nobodys}/{where} fuse.unionfs {options},noauto 0 0"
        for where, options in WISHES.items()
    ]
    (nobodys / "fstab").write_text("\n".join([*lines, ""]))
    script = (
        f'"$@" mount {nobodys}/mnt; echo $?; "$@" cat mnt/file; echo; "$@" sh -c "echo x >mnt/new"; '
        f"grep {nobodys}/mnt /proc/self/mountinfo; "
        f'"$@" mount -o remount,ro {nobodys}/mnt; echo $?; "$@" umount {nobodys}/mnt; echo $?; '
        f'for where in roots run nofollow; do "$@" mount {nobodys}/$where; echo $?; done; '
        f"grep -c 'fuse.*{nobodys}' /proc/self/mountinfo"
    )
    prefix = bare_dev("mknod -m 666 /dev/fuse c 10 229 && mount --bind fstab /etc/fstab && ")
    done = subprocess.run(
        [*prefix, "sh", "-c", script, "sh", *AS_NOBODY, "env", f"XDG_RUNTIME_DIR={nobodys}/run"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60,
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert said[:2] == ["0", "content"]
    assert {"nosuid", "nodev", "noexec"} <= set(said[2].split()[5].split(","))
    assert "user_id=65534" in said[2]
    assert said[4:6] == ["32", "0"]
    assert "only root can remount" in said[3]
    assert said[7] == said[9] == "32"
    assert "roots: " in said[6] and "no write access" in said[6]
    assert "strictatime takes a mount of the branch's own" in said[8]
    assert said[11:] == ["32", "0"]
    assert "nosymfollow takes root" in said[10]
    assert os.listdir("up") == ["new"]


# Remounting


def remount(options: str, *more: str, fails: int = 0) -> str:
    return call("mount", *more, "-o", f"remount,{options}", "mnt", fails=fails)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_changes(transport: str) -> None:
    call(*MOUNT, "low:up", "mnt", "-o", f"transport={transport}")
    Path("mnt/new").write_text("new")
    for options, there, gone in (
        ("ro", {"ro"}, {"rw"}),
        ("rw", {"rw"}, {"ro"}),
        ("noatime", {"noatime", "rw"}, {"relatime"}),
        ("relatime", {"relatime"}, {"noatime"}),
        ("nosuid,nodev", {"nosuid", "nodev", "relatime"}, set[str]()),
        ("noexec,strictatime", {"nosuid", "nodev", "noexec"}, {"relatime"}),
        ("exec,suid,dev,relatime", {"relatime"}, {"nosuid", "nodev", "noexec"}),
        ("defaults,nofail,_netdev,x-a,comment=b", {"rw"}, set[str]()),
    ):
        assert remount(options) == ""
        assert there <= shown()
        assert not gone & shown()
        writable = "ro" not in there
        try:
            Path("mnt/new").write_text(options)
        except OSError:
            assert not writable
        else:
            assert writable
    assert Path("mnt/file").read_text() == "content"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_access_times_of_the_server_s(transport: str) -> None:
    Path("up/f").write_text("text")
    call(*MOUNT, "low:up", "mnt", "-o", f"noatime,transport={transport}")

    def moves() -> bool:
        os.utime("up/f", ns=(5, 5))
        Path("mnt/f").read_text()
        return os.stat("up/f").st_atime_ns != 5

    assert not moves()
    remount("relatime")
    assert moves()
    remount("noatime")
    assert not moves()
    remount("ro")
    assert not moves()
    remount("strictatime")
    assert moves()


def test_read_only_in_use() -> None:
    call(*MOUNT, "low:up", "mnt", "-o", "noatime")
    os.utime("low/file", ns=(5, 5))
    with open("mnt/file", "a") as file:
        file.write("more")
        file.flush()
        said = remount("ro,strictatime", fails=32)
        assert said.count("\n") == 1
        assert "busy" in said and "fuser" in said
        assert {"rw", "noatime"} <= shown()
        os.utime("up/file", ns=(5, 5))
        Path("mnt/file").read_text()
        assert os.stat("up/file").st_atime_ns == 5
    remount("ro")


@pytest.mark.needs("ptrace")
def test_what_is_read_only_on_the_disk_is_there() -> None:
    """A remount brings the writable branch to its disk, as it does of any file system."""
    call(*MOUNT, "low:up", "mnt")
    with traced("syncfs"):
        remount("noatime")
        remount("ro")
    assert Path("trace").read_text().count("syncfs(") == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [("posix", "posix"), ("volatile", "volatile"), ("spin=7", "spin"), ("transport=pyfuse3", "transport"),
     ("fsname=a", "fsname"), ("subtype=a", "subtype"), ("br=up:mnt2", "branches"), ("lowerdir=low", "branches"),
     ("dirsync", "dirsync"), ("sync", "sync"), ("frobnicate", "frobnicate"), ("max_read=5", "max_read"),
     ("user_id=7", "user_id"),     ("lazytime", "lazytime"), ("append:low", "append:low")],
)  # fmt: skip
def test_what_is_fixed(options: str, word: str) -> None:
    call(*MOUNT, "low:up", "mnt")
    before = point()
    said = call("mount", "-o", f"remount,noatime,{options}", "mnt", fails=1 if word in FAULTY else 32)
    assert said.startswith("mount.fuse.unionfs: ")
    assert said.count("\n") == 1
    assert word in said
    assert point() == before


FAULTY = {"frobnicate", "max_read", "user_id", "lazytime", "append:low"}


def test_what_is_said_again() -> None:
    options = "posix,volatile,spin=7,transport=direct,fsname=a,subtype=unionfs,br=up=rw:low=ro"
    call(*MOUNT, "none", "mnt", "-o", options)
    assert remount(f"noatime,{options}") == ""
    assert "noatime" in shown()
    assert call(*MOUNT, f"{os.getcwd()}/low:up", "mnt", "-o", "remount,noatime,posix") == ""
    assert "branches" in call(*MOUNT, "up:low", "mnt", "-o", "remount", fails=32)


@pytest.mark.parametrize(("source", "options"), [("low:up", "ro"), ("low=ro:up=ro", "")])
def test_branches_that_were_opened_for_reading(source: str, options: str) -> None:
    call(*MOUNT, source, "mnt", "-o", f"nodev,{options}".removesuffix(","))
    said = remount("rw", fails=32)
    assert said.count("\n") == 1
    assert "reading only" in said
    assert {"ro", "nodev"} <= shown()
    assert remount("noatime") == ""
    assert {"ro", "nodev", "noatime"} <= shown()


def test_a_line_of_fstab_remounted(place: Path, fstab: Callable[..., list[str]]) -> None:
    mount = fstab(f"{place}/low:{place}/up {place}/mnt fuse.unionfs noatime 0 0")
    call(*mount, f"{place}/mnt")
    call(*mount, "-o", "remount,ro", f"{place}/mnt")
    assert {"ro", "noatime"} <= shown()
    call(*mount, "-o", "remount,rw,nodev", f"{place}/mnt")
    assert {"rw", "noatime", "nodev"} <= shown()


def test_by_the_kernel_alone() -> None:
    """mount -i asks nobody: the flags that are the kernel's change."""
    call(*MOUNT, "low:up", "mnt")
    remount("ro", "-i")
    assert "ro" in shown()
    remount("rw")
    Path("mnt/new").touch()


def test_a_server_that_is_dead() -> None:
    call(*MOUNT, "low:up", "mnt")
    os.kill(info.ask("mnt")["pid"], 9)
    said = remount("ro", fails=32)
    assert "server" in said
    assert said.count("\n") == 1
    assert "no union" in call("/usr/sbin/mount.fuse.unionfs", "none", "low", "-o", "remount,ro", fails=32)


# The links


def test_the_links_are_installed_and_removed(tmp_path: Path) -> None:
    os.mkdir("bin")
    assert call(PROGRAM, "install-helpers", "bin") == ""
    names = ["mount.fuse.unionfs", "mount.unionfs", "umount.fuse.unionfs"]
    assert sorted(os.listdir("bin")) == names
    assert {os.readlink(f"bin/{name}") for name in names} == {PROGRAM}
    os.unlink("bin/mount.fuse.unionfs")
    os.symlink("/elsewhere/unionfs", "bin/mount.fuse.unionfs")
    os.unlink("bin/mount.unionfs")
    Path("bin/mount.unionfs").write_text("of another package")
    said = call(PROGRAM, "install-helpers", "bin")
    assert said == "unionfs: bin/mount.unionfs is another program's, and left as it is\n"
    assert os.readlink("bin/mount.fuse.unionfs") == PROGRAM
    call(PROGRAM, "install-helpers", "--remove", "bin")
    assert os.listdir("bin") == ["mount.unionfs"]
    Path("bin/umount.fuse.unionfs").write_text("of another package")
    assert "umount.fuse.unionfs: is another" in call(PROGRAM, "install-helpers", "bin", fails=1)
    assert sorted(os.listdir("bin")) == ["mount.unionfs", "umount.fuse.unionfs"]


@pytest.mark.needs("program:setpriv")
def test_what_others_may_change_is_not_linked() -> None:
    """Root would run it."""
    os.mkdir("bin")
    scripts = os.path.dirname(PROGRAM)
    owner = os.stat(scripts).st_uid
    os.chown(scripts, 65534, -1)
    try:
        said = call(PROGRAM, "install-helpers", "bin", fails=1)
    finally:
        os.chown(scripts, owner, -1)
    assert scripts in said
    assert "others than root" in said
    assert os.listdir("bin") == []
