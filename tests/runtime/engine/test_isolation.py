"""What root in a container tries, by the command line: the host's disks, kernel, descriptors, files and volumes; the
same for `run` and for `exec`."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.disk.loop import attached
from tests.children import in_child
from tests.runtime.conftest import IMAGE, PATIENCE, Runtime, links
from tests.runtime.containers import LOOP, start
from unionfs.linux import consts, files, mounts

# In a volume that the host's root made, on the union, and on the tmpfs of /dev: who may open a node is not decided by
# where it lies.
NODES = """
for place in /v /tmp /dev; do
    mknod $place/disk b 7 %d 2>&1; mknod $place/log c 1 11 2>&1; mknod $place/fuse c 10 229 2>&1
done
for node in /v/* /tmp/disk /tmp/log /tmp/fuse /dev/disk /dev/log /dev/fuse; do
    test -e $node || echo $node is missing
    for way in r w; do
        if [ $way = r ]; then true <$node; else true >>$node; fi 2>/dev/null && echo $node: $way
    done
done
dd if=/tmp/disk bs=16 count=1 2>/dev/null
true
"""


@pytest.mark.needs("loop")
def test_a_node_of_the_hosts_disk_opens_nothing(runtime: Runtime, tmp_path: Path) -> None:
    image, volume = tmp_path / "image", tmp_path / "volume"
    image.write_bytes(b"SECRET of a disk".ljust(1 << 20, b"\0"))
    volume.mkdir()
    with attached(str(image)) as device:
        minor = os.minor(os.stat(device).st_rdev)
        os.mknod(volume / "hosts", 0o60666, os.makedev(7, minor))
        script = NODES % minor
        assert runtime.run("-v", f"{volume}:/v", IMAGE, "sh", "-c", script) == ""
        for name in ("disk", "log", "fuse"):
            (volume / name).unlink()
        start(runtime, "box", LOOP, "-v", f"{volume}:/v")
        assert runtime("exec", "-u", "0", "box", "sh", "-c", script) == ""
        runtime("rm", "-f", "box")
    assert image.read_bytes().startswith(b"SECRET of a disk")


# Opening is refused before anything is written; a file that opens is named.
KERNEL = """
cd /proc
find /proc/sys sysrq-trigger bus fs irq scsi acpi /sys ! -type d ! -type l 2>/dev/null >/tmp/files
while read -r file; do
    { true >>"$file"; } 2>/dev/null && echo "$file"
done </tmp/files
mkdir /sys/fs/cgroup/escape /sys/fs/cgroup/*/escape 2>/dev/null && echo a cgroup
for place in /proc/sys /sys /sys/fs/cgroup /proc; do
    mount -o remount,rw,bind $place 2>/dev/null && echo $place again
    umount $place 2>/dev/null && echo $place bare
done
umount /proc/kcore /proc/keys 2>/dev/null && echo unmasked
mount -t proc proc /mnt 2>/dev/null && echo another proc
unshare -U true 2>/dev/null && echo a user namespace
unshare -m true 2>/dev/null && echo a mount namespace
wc -l </tmp/files
"""


def test_the_kernels_settings_cannot_be_written(runtime: Runtime) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    [count] = runtime.run(IMAGE, "sh", "-c", KERNEL).splitlines()
    assert int(count) > 500, "they were not tried"
    start(runtime, "box", LOOP)
    [count] = runtime("exec", "-u", "0", "box", "sh", "-c", KERNEL).splitlines()
    assert int(count) > 500
    runtime("rm", "-f", "box")
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_capabilities_of_what_is_added(runtime: Runtime) -> None:
    """Fourteen and none to inherit, also for a user and for what is added; none of them as another than root."""
    look = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | cut -f2"
    start(runtime, "box", LOOP)
    for words in (("run", "--rm", "--network=none"), ("exec",)):
        what = "box" if words == ("exec",) else IMAGE
        zero, all14 = "0" * 16, "00000000a80425fb"
        assert int(all14, 16).bit_count() == 14
        assert runtime(*words, what, "sh", "-c", look).split() == [zero, all14, all14, all14, zero]
        assert runtime(*words, "-u", "1000", what, "sh", "-c", look).split() == [zero, zero, zero, all14, zero]
    runtime("rm", "-f", "box")


@pytest.fixture
def leaked() -> Iterator[list[int]]:
    """Descriptors that a careless caller leaves open to its children: of the host's root, of a file, of a socket."""
    ours, theirs = socket.socketpair()
    fds = [os.open("/", os.O_RDONLY), os.open("/etc/passwd", os.O_RDONLY), os.open("/proc/self/ns/mnt", os.O_RDONLY)]
    yield [*fds, ours.fileno()]
    for fd in fds:
        os.close(fd)
    ours.close()
    theirs.close()


# The shell's own are looked at, without a pipe or directory that it would open for the looking.
DESCRIPTORS = "for fd in $(seq 0 99); do test -L /proc/%s/fd/$fd && readlink /proc/%s/fd/$fd; done; true"


def test_no_descriptor_of_the_host(runtime: Runtime, leaked: list[int]) -> None:
    """Neither in the container's first process nor in what is added, with and without a terminal."""

    def call(*words: str) -> list[str]:
        with runtime.popen(*words, pass_fds=leaked, stdin=subprocess.DEVNULL) as process:
            out, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, err
        return out.decode().split()

    for terminal in ((), ("-t",)):
        call("run", "-d", *terminal, "--network=none", "--name=box", IMAGE, "sh", "-c", LOOP)
        own = call("exec", *terminal, "box", "sh", "-c", DESCRIPTORS % ("$$", "$$"))
        first = call("exec", "box", "sh", "-c", DESCRIPTORS % ("1", "1"))
        for names in (own, first):
            assert len(names) == 3, names
            assert all(name.startswith(("pipe:", "/dev/pts/", "/dev/null")) for name in names), names
        runtime("rm", "-f", "box")


@pytest.mark.parametrize("how", ["run", "exec"])
def test_a_working_directory_through_a_descriptor(runtime: Runtime, leaked: list[int], how: str) -> None:
    """CVE-2024-21626: /proc/self/fd/N, while the command is not there yet, may be a directory of the host's."""
    start(runtime, "box", LOOP)
    for number in (3, *leaked[:2]):
        words = ("exec",) if how == "exec" else ("run", "--rm", "--network=none")
        words = (*words, "-w", f"/proc/self/fd/{number}", "box" if how == "exec" else IMAGE, "ls", "/")
        with runtime.popen(*words, pass_fds=leaked, stdin=subprocess.DEVNULL) as process:
            out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (125, b"")
        assert b"the working directory /proc/self/fd/" in err
    runtime("rm", "-f", "box")


def test_a_user_that_is_none_is_not_root(runtime: Runtime) -> None:
    """What lookup() says of more of them is in test_engine_values.py."""
    start(runtime, "box", LOOP)
    for user in ("-1", "4294967295", "0x0", "1000:-1", "root\n"):
        assert "unable to find" in runtime.refused("exec", "-u", user, "box", "id", code=125)
    for user in ("-1", "4294967295", "1000:-1"):
        assert "unable to find" in runtime.refused("run", "--rm", "-u", user, IMAGE, "id", code=125)
    runtime("rm", "-f", "box")


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that nothing else runs: a file that is running cannot be written to, whoever holds it."""
    real = Path(os.path.realpath(sys.executable))
    copy = tmp_path / "python/bin" / real.name
    copy.parent.mkdir(parents=True)
    shutil.copy(real, copy)
    for name in ("pyvenv.cfg", "lib"):
        (tmp_path / "python" / name).symlink_to(Path(sys.prefix, name))
    return copy


HAND_OVER = """
import os, socket
with socket.socket(socket.AF_UNIX) as outside:
    outside.connect("/v/socket")
    socket.send_fds(outside, [os.uname().nodename.encode()], [os.open("/proc/self/exe", os.O_PATH)])
"""


@pytest.mark.parametrize("how", ["run", "exec"])
def test_the_runtimes_own_program_cannot_be_overwritten(
    runtime: Runtime, python: Path, tmp_path: Path, how: str
) -> None:
    """CVE-2019-5736: a command that is /proc/self/exe is our interpreter. Whoever keeps its file until nobody runs it
    has it read-only still; here it is handed to the host's root, who may write to any file."""
    before = python.read_bytes()
    (tmp_path / "v").mkdir()
    library = sysconfig.get_path("stdlib")
    volumes = [f"{library}:{library}", "/usr/lib:/lib", "/usr/lib64:/lib64", f"{tmp_path}/v:/v"]
    options = [word for volume in volumes for word in ("-v", volume)]
    command = ["/proc/self/exe", "-I", "-S", "-c", HAND_OVER]

    def call(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([python, *runtime.command(*words)[1:]], capture_output=True, timeout=4 * PATIENCE)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "v/socket"))
        listener.listen()
        listener.settimeout(PATIENCE)
        if how == "run":
            ended = call("run", "--rm", "--network=none", *options, IMAGE, *command)
        else:
            call("run", "-d", "--network=none", "--name=box", *options, IMAGE, "sleep", "600")
            ended = call("exec", "box", *command)
            runtime("rm", "-f", "box")
        assert ended.returncode == 0, ended.stderr
        connection, _ = listener.accept()
        with connection:
            name, [kept], _, _ = socket.recv_fds(connection, 100, 1)
    try:
        assert os.path.samestat(os.fstat(kept), os.stat(python)), "it was not our interpreter"
        with pytest.raises(OSError) as refused:
            os.close(os.open(f"/proc/self/fd/{kept}", os.O_WRONLY))
        assert refused.value.errno == errno.EROFS
    finally:
        os.close(kept)
    assert name
    assert python.read_bytes() == before


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """Each becomes the other, as fast as somebody can who has the volume too."""
    directory = os.open(one.parent, os.O_RDONLY | os.O_DIRECTORY)
    names = os.fsencode(one.name), os.fsencode(other.name)

    def swap() -> None:
        while True:
            files.renameat2(directory, names[0], directory, names[1], consts.RENAME_EXCHANGE)

    child = in_child(swap)
    os.close(directory)
    try:
        yield
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


@pytest.mark.parametrize(
    "target", ["{outside}", "../../../../../../../../..{outside}", "/proc/self/cwd", "/sys/fs/cgroup"]
)
def test_a_volume_in_a_volume_that_is_swapped_for_a_link(runtime: Runtime, tmp_path: Path, target: str) -> None:
    """CVE-2021-30465: it is where it was asked for when its container runs, or where the link leads in the container's
    root, or the container does not run."""
    shared, inner, outside = (tmp_path / name for name in ("shared", "inner", "outside"))
    for path in (shared / "a/in", inner, outside):
        path.mkdir(parents=True)
    (shared / "b").symlink_to(target.format(outside=outside))
    (inner / "mark").touch()
    (outside / "in").mkdir()
    mounted, ended = mounts.mountinfo(), []
    place = f"(/data/[ab]|{outside})/in" if "outside" in target else "/data/[ab]/in"
    look = f"grep -cE ' /[^ ]*inner {place} ' /proc/self/mountinfo; grep -c ' /[^ ]*inner ' /proc/self/mountinfo"
    volumes = ("-v", f"{shared}:/data", "-v", f"{inner}:/data/a/in")
    with swapping(shared / "a", shared / "b"):
        for _ in range(2):
            ended.append(runtime.call("run", "--rm", "--network=none", *volumes, IMAGE, "sh", "-c", look))
    for done in ended:
        if done.returncode == 0:
            assert done.stdout == "1\n1\n"
        else:
            assert (done.returncode, done.stdout) == (125, ""), done
            assert done.stderr.count("\n") == 1
    assert [point.target for point in mounts.mountinfo()] == [point.target for point in mounted]
    assert os.listdir(outside) == ["in"] and os.listdir(outside / "in") == []
    assert os.listdir(inner) == ["mark"]
    assert links() == ["lo"]


HOSTILE_MODULE = "open({mark!r}, 'a').write(__name__ + ' ')\n"
SHADOWED = (
    "runtime", "drivers", "unionfs", "json", "socket", "struct", "subprocess", "signal", "sqlite3", "ctypes", "fcntl",
    "select", "hashlib", "threading", "tempfile", "sitecustomize", "usercustomize", "trio", "pyfuse3", "encodings",
)  # fmt: skip
# Of the caller's environment: what changes how Python runs, and what a login shell may have set for something else.
VARIABLES = {
    "PYTHONSTARTUP": "{evil}/json.py", "PYTHONUSERBASE": "{evil}",
    "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONUNBUFFERED": "1",
    "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONSAFEPATH": "", "PYTHONINSPECT": "1",
}  # fmt: skip


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A directory full of modules that must not be imported: each leaves its name in `imported`."""
    place = tmp_path / "evil"
    place.mkdir()
    text = HOSTILE_MODULE.format(mark=str(tmp_path / "imported"))
    for name in SHADOWED:
        (place / f"{name}.py").write_text(text)
    for name in ("runtime", "drivers", "unionfs"):
        (place / f"{name}.py").rename(place / f"{name}_.py")
        (place / name).mkdir()
        for module in ("__init__", "__main__", "cli"):
            (place / name / f"{module}.py").write_text(text)
    return place


@pytest.mark.parametrize("environment", [{}, VARIABLES], ids=["its directory", "and its variables"])
def test_the_callers_directory_and_variables_decide_nothing(
    runtime: Runtime, evil: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Neither of the command nor of any process that it starts: the task, the union's server, what exec adds."""
    program = Path(sys.executable).with_name("runtime")
    if not program.exists():
        pytest.skip(f"the command is not installed: {program}")
    env = {**os.environ, **{name: value.format(evil=evil) for name, value in environment.items()}}
    env.pop("PYTHONPATH", None)

    def call(*words: str) -> str:
        command: list[str] = [str(program), *runtime.command(*words)[3:]]
        done = subprocess.run(command, cwd=evil, env=env, capture_output=True, text=True, timeout=4 * PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = call("run", "--rm", "--network=none", IMAGE, "sh", "-c", "env; ls /")
    assert "PYTHON" not in shown and "LC_ALL" not in shown
    call("run", "-d", "--network=none", "--name=box", IMAGE, "sh", "-c", f"echo x >/new; {LOOP}")
    added = ("-e", f"PYTHONPATH={evil}", "-e", "PYTHONHOME=/none", "box", "sh", "-c", "echo $PYTHONHOME")
    assert call("exec", *added) == "/none\n"
    assert "A /new" in call("diff", "box")
    call("export", "-o", str(tmp_path / "box.tar"), "box")
    call("rm", "-f", "box")
    assert not (tmp_path / "imported").exists(), (tmp_path / "imported").read_text()


def test_the_containers_variables_reach_no_interpreter_of_ours(runtime: Runtime, evil: Path, tmp_path: Path) -> None:
    """An image's ENV and `-e` are for the command, and the processes before it are ours."""
    variables = {"PYTHONPATH": "/v", "PYTHONHOME": "/v", "PYTHONSTARTUP": "/v/json.py", "LD_PRELOAD": "/v/x.so"}
    words = [word for name, value in variables.items() for word in ("-e", f"{name}={value}")]
    show = "env | grep -E '^(PYTHON|LD_)' | sort"
    expected = "".join(sorted(f"{name}={value}\n" for name, value in variables.items()))
    assert runtime.run("-v", f"{evil}:/v", *words, IMAGE, "sh", "-c", show) == expected
    start(runtime, "box", LOOP, "-v", f"{evil}:/v", *words)
    assert runtime("exec", *words, "box", "sh", "-c", show) == expected
    runtime("rm", "-f", "box")
    assert not (tmp_path / "imported").exists()


