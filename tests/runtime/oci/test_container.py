"""A container from create to delete: isolation, the command's process, exit codes, signals."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import CommandNotExecutable, CommandNotFound, ContainerError
from runtime.oci import container, defaults, state
from tests.runtime.oci.conftest import Config, process
from tests.runtime.oci.keeper import Keeper
from unionfs.linux import consts, mounts

pytestmark = pytest.mark.needs("root")

Make = Callable[..., Config]
Sh = Callable[..., str]

_PROC_NAMES = {"mount": "mnt", "network": "net"}


def _own(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{_PROC_NAMES.get(kind, kind)}")


@pytest.mark.parametrize("kind", defaults.NAMESPACES)
def test_each_namespace_is_new(sh: Sh, kind: str) -> None:
    there = sh(f"readlink /proc/self/ns/{_PROC_NAMES.get(kind, kind)}").strip()
    assert there.partition(":")[0] == _PROC_NAMES.get(kind, kind)
    assert there != _own(kind)


@pytest.mark.parametrize("kind", ["network", "ipc", "pid"])
def test_a_namespace_that_is_not_listed_is_the_hosts(sh: Sh, kind: str) -> None:
    left = [{"type": other} for other in defaults.NAMESPACES if other != kind]
    assert sh(f"readlink /proc/self/ns/{_PROC_NAMES.get(kind, kind)}", linux__namespaces=left).strip() == _own(kind)


@pytest.mark.parametrize("kinds", [("network",), ("pid",), ("ipc", "uts", "network", "pid", "cgroup")])
def test_a_namespace_with_a_path_is_joined(keeper: Keeper, config: Make, kinds: tuple[str, ...]) -> None:
    first = keeper.create(config("sleep", "1000")).start()
    spaces: list[dict[str, str]] = [{"type": kind} for kind in defaults.NAMESPACES if kind not in kinds]
    names = [_PROC_NAMES.get(kind, kind) for kind in kinds]
    spaces += [
        {"type": kind, "path": f"/proc/{first.pid}/ns/{name}"} for kind, name in zip(kinds, names, strict=True)
    ]
    spec = config("sh", "-c", "; ".join(f"readlink /proc/self/ns/{name}" for name in names), linux__namespaces=spaces)
    spec["hostname"] = ""
    expected = [os.readlink(f"/proc/{first.pid}/ns/{name}") for name in names]
    result = keeper.run(spec)
    first.signal(signal.SIGKILL)
    first.wait()
    first.delete()
    assert result == (0, "".join(f"{link}\n" for link in expected))


def test_it_is_process_1_and_sees_only_itself(sh: Sh) -> None:
    assert sh("echo $$; ls -d /proc/[0-9]*; true").split() == ["1", "/proc/1"]


def test_only_its_own_mounts_are_there(sh: Sh) -> None:
    places = [line.split()[4] for line in sh("cat /proc/self/mountinfo").splitlines()]
    assert len(places) == len(set(places)), "the old root may be stacked on the new one"
    ours = {str(mount["destination"]) for mount in defaults.MOUNTS} | {"/"}
    covered = {*defaults.MASKED_PATHS, *defaults.READONLY_PATHS}
    assert {place for place in places if not place.startswith("/sys/fs/cgroup/")} - covered == ours


def test_the_hosts_mounts_do_not_change(keeper: Keeper, config: Make, rootfs: Path, tmp_path: Path) -> None:
    """Also not where the host shares its mounts, as systemd has it do with all of them."""
    (tmp_path / "shared").mkdir()
    mounts.mount(str(rootfs), str(tmp_path / "shared"), None, consts.MS_BIND)
    mounts.mount("none", str(tmp_path / "shared"), None, consts.MS_SHARED)
    try:
        keeper = Keeper(str(tmp_path))
        before = Path("/proc/self/mountinfo").read_text()
        box = keeper.create(config("sleep", "1000", root__path=str(tmp_path / "shared"))).start()
        assert Path("/proc/self/mountinfo").read_text() == before
        box.delete()
        assert box.wait().code == 137
        keeper.close()
    finally:
        mounts.umount2(str(tmp_path / "shared"))


@pytest.mark.parametrize("mounted", [True, False])
def test_the_root_of_its_namespace_is_its_own_also_for_a_caller_in_a_chroot(
    keeper: Keeper, config: Make, rootfs: Path, tmp_path: Path, mounted: bool
) -> None:
    """Whoever joins the container's mount namespace starts at that root: it must not be what the chroot hid."""
    (rootfs / "here").touch()
    (tmp_path / "jail").mkdir()
    keeper.call("enter_chroot", path=str(tmp_path / "jail"), mounted=mounted)
    box = keeper.create(config("sleep", "1000")).start()
    found = box.exec(process("ls", "-d", "/here")).start().wait()
    box.signal(signal.SIGKILL)
    box.wait()
    box.delete()
    assert found == (0, "/here\n")


def test_hostname_and_domain_name_are_its_own(sh: Sh) -> None:
    host = socket.gethostname()
    out = sh("hostname; cat /proc/sys/kernel/domainname", hostname="elsewhere", domainname="example.org")
    assert out.split() == ["elsewhere", "example.org"]
    assert socket.gethostname() == host


def test_the_loopback_interface_is_up(sh: Sh) -> None:
    out = sh("ip -o link")
    assert out.count("\n") == 1 and "LOOPBACK,UP" in out


def test_a_sysctl_is_set_in_its_namespace(sh: Sh) -> None:
    there = "/proc/sys/net/ipv4/ip_default_ttl"
    before = Path(there).read_text()
    assert sh(f"cat {there}", linux__sysctl={"net.ipv4.ip_default_ttl": "77"}) == "77\n"
    assert Path(there).read_text() == before


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("sh -c 'kill -9 $$'; exit $?", 137)],
)
def test_the_exit_code_is_the_commands(keeper: Keeper, config: Make, command: str, code: int) -> None:
    assert keeper.run(config("sh", "-c", command)).code == code


def test_a_signal_that_ends_it_is_128_and_its_number(keeper: Keeper, config: Make) -> None:
    box = keeper.create(config("sleep", "1000")).start()
    box.signal(signal.SIGKILL)
    assert box.wait().code == 137
    box.delete()


def test_a_signal_reaches_the_command(keeper: Keeper, config: Make) -> None:
    box = keeper.create(config("sh", "-c", "trap 'echo caught; exit 5' TERM; echo set; while :; do sleep 0.01; done"))
    box.start().until("set").signal(signal.SIGTERM)
    assert box.wait() == (5, "set\ncaught\n")
    box.delete()


def test_when_process_1_ends_the_others_do(keeper: Keeper, config: Make) -> None:
    box = keeper.create(config("sh", "-c", "sleep 1000 & sleep 1000 & echo ready; exit 0")).start()
    assert box.wait().code == 0
    box.delete()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["no-such-command"], "cannot run 'no-such-command': not found in $PATH"),
        (["/no/such/command"], "cannot run '/no/such/command': no such file"),
        (["/bin/sh/command"], "cannot run '/bin/sh/command': no such file"),
        (["/script-of-nothing"], "cannot run '/script-of-nothing': its interpreter does not exist in the image"),
    ],
)
def test_a_command_that_is_not_there(keeper: Keeper, config: Make, rootfs: Path, args: list[str], words: str) -> None:
    (rootfs / "script-of-nothing").write_text("#!/no/such/interpreter\n")
    (rootfs / "script-of-nothing").chmod(0o755)
    with pytest.raises(CommandNotFound) as refusal:
        keeper.run(config(*args))
    assert str(refusal.value) == words


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["/bin"], "cannot run '/bin': is a directory"),
        (["/plain"], "cannot run '/plain': Permission denied"),
        (["plain"], "cannot run 'plain': Permission denied"),
        (["/empty"], "cannot run '/empty': Exec format error"),
        (["/loop"], "cannot run '/loop': Too many levels of symbolic links"),
    ],
)
def test_a_command_that_cannot_be_executed(
    keeper: Keeper, config: Make, rootfs: Path, args: list[str], words: str
) -> None:
    (rootfs / "plain").write_text("text\n")
    (rootfs / "bin/plain").write_text("text\n")
    (rootfs / "empty").touch(0o755)
    (rootfs / "loop").symlink_to("loop")
    with pytest.raises(CommandNotExecutable) as refusal:
        keeper.run(config(*args))
    assert str(refusal.value) == words


def test_the_command_is_looked_up_with_its_own_path_and_root(keeper: Keeper, config: Make, rootfs: Path) -> None:
    (rootfs / "tools").mkdir()
    (rootfs / "tools/greet").write_text("#!/bin/sh\necho hello from $0\n")
    (rootfs / "tools/greet").chmod(0o755)
    spec = config("greet", process__env=["PATH=relative:/nowhere:/tools:/bin"])
    assert keeper.run(spec) == (0, "hello from /tools/greet\n")


def test_a_relative_directory_in_path_is_not_searched(keeper: Keeper, config: Make) -> None:
    with pytest.raises(CommandNotFound):
        keeper.run(config("true", process__env=["PATH=.:bin"], process__cwd="/bin"))


def test_environment_and_working_directory(sh: Sh, rootfs: Path) -> None:
    path = f"PATH={defaults.PATH}"
    out = sh("echo $A,$B; pwd", process__env=[path, "A=1", "B=x=y", "A=2"], process__cwd="/made/for/it/")
    assert out == "2,x=y\n/made/for/it\n"
    assert (rootfs / "made/for/it").stat().st_mode & 0o777 == 0o755


def test_user_groups_and_umask(sh: Sh) -> None:
    user = {"uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o027}
    assert sh("id -u; id -g; id -G; umask", process__user=user).split() == ["1000", "1001", "1001", "7", "8", "0027"]
    assert sh("id -G; umask").split() == ["0", "0022"]


def test_the_users_own_pipes_can_be_opened_again(config: Make, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    script = (
        "import os, sys; from runtime.oci import container; import json\n"
        "c = container.create(sys.argv[1], json.load(sys.stdin), stdio=container.Stdio(0, 1, 1))\n"
        "container.start(sys.argv[1]); c.wait(); container.delete(sys.argv[1])\n"
    )
    spec = config("sh", "-c", "echo again >/dev/stdout", process__user={"uid": 1000, "gid": 1000})
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(command, input=json.dumps(spec).encode(), stdout=writer, check=True)
    os.close(writer)
    with open(reader, encoding="ascii") as out:
        assert out.read() == "again\n"


def test_no_new_privs_only_when_asked(sh: Sh) -> None:
    query = "grep NoNewPrivs /proc/self/status"
    assert sh(query).split()[1] == "0"
    assert sh(query, process__noNewPrivileges=True).split()[1] == "1"


def test_rlimits(sh: Sh) -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}]
    assert sh("ulimit -n; ulimit -Hn; ulimit -c", process__rlimits=limits).split() == ["100", "200", "0"]


def test_an_rlimit_that_the_host_forbids_is_a_sentence(keeper: Keeper, config: Make) -> None:
    status = Path("/proc/self/status").read_text()
    held = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    if held >> 24 & 1:
        pytest.skip("this process has CAP_SYS_RESOURCE: no rlimit is forbidden to it")
    limit = {"type": "RLIMIT_MEMLOCK", "soft": 1 << 60, "hard": 1 << 60}
    with pytest.raises(ContainerError, match=r"^cannot set the resource limits: .* \(RLIMIT_MEMLOCK 1152.*\)$"):
        keeper.run(config("true", process__rlimits=[limit]))


def test_oom_score_adj(sh: Sh) -> None:
    assert sh("cat /proc/self/oom_score_adj", process__oomScoreAdj=500) == "500\n"


def test_signals_are_as_a_new_process_has_them(keeper: Keeper, config: Make) -> None:
    # Python ignores SIGPIPE; a command that inherited that would not end when its reader does.
    out = keeper.run(config("grep", "-E", "Sig(Ign|Blk)", "/proc/self/status")).out
    assert [line.split()[1] for line in out.splitlines()] == ["0" * 16] * 2


def test_only_standard_descriptors_are_open(sh: Sh) -> None:
    assert sh("ls /proc/1/fd; true").split() == ["0", "1", "2"]


def test_without_stdio_it_reads_and_writes_null(config: Make, rootfs: Path, tmp_path: Path) -> None:
    script = (
        "import json, sys; from runtime.oci import container\n"
        "c = container.create(sys.argv[1], json.load(sys.stdin)); container.start(sys.argv[1])\n"
        "c.wait(); container.delete(sys.argv[1])\n"
    )
    spec = config("sh", "-c", "for n in 0 1 2; do s=$(stat -Lc %t:%T /proc/1/fd/$n); echo $s >>/seen; done")
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], input=json.dumps(spec).encode(), check=True)
    assert (rootfs / "seen").read_text() == "1:3\n" * 3


def test_between_create_and_start_nothing_of_the_command_runs(keeper: Keeper, config: Make, rootfs: Path) -> None:
    box = keeper.create(config("touch", "/ran"))
    assert os.readlink(f"/proc/{box.pid}/ns/net") != _own("network")
    assert not (rootfs / "ran").exists()
    assert box.start().wait().code == 0
    assert (rootfs / "ran").exists()
    box.delete()


def test_killed_before_start(keeper: Keeper, config: Make) -> None:
    box = keeper.create(config("true"))
    box.signal(signal.SIGKILL)
    assert box.wait().code == 137
    with pytest.raises(ContainerError, match="cannot be started"):
        box.start()
    box.delete()


def test_the_process_ends_when_its_parent_ends_before_start(tmp_path: Path, config: Make) -> None:
    keeper = Keeper(str(tmp_path))
    box = keeper.create(config("sleep", "1000"))
    pidfd = os.pidfd_open(box.pid)
    keeper.kill()
    with open(pidfd, "rb"):
        assert select.select([pidfd], [], [], 10)[0], "it is still there"
    container.delete(box.directory)


def test_delete_kills_what_is_left_and_can_be_repeated(keeper: Keeper, config: Make) -> None:
    left = [{"type": kind} for kind in defaults.NAMESPACES if kind != "pid"]
    box = keeper.create(config("sh", "-c", "sleep 1000 & echo $!", linux__namespaces=left)).start()
    with open(os.pidfd_open(int(box.wait().out)), "rb") as other:
        assert not select.select([other], [], [], 0)[0]
        box.delete()
        assert select.select([other], [], [], 0)[0], "it outlived delete"
    box.delete()
    container.delete(box.directory)


def test_kill_by_another_process_signals_only_the_container(keeper: Keeper, config: Make) -> None:
    box = keeper.create(config("sleep", "1000")).start()
    container.kill(box.directory, signal.SIGKILL)
    assert box.wait().code == 137
    with pytest.raises(ContainerError, match="has ended"):
        container.kill(box.directory, signal.SIGKILL)
    box.delete()


def test_a_process_that_has_the_pid_again_is_not_taken_for_it(keeper: Keeper, config: Make) -> None:
    """Neither one outside the cgroup, nor one in it that started at another time."""
    box = keeper.create(config("sleep", "1000")).start()
    known = state.load(box.directory)
    for changed in (known._replace(pid=os.getpid()), known._replace(start_time=known.start_time + 1)):
        state.save(box.directory, changed)
        with pytest.raises(ContainerError, match=r"^the container's process \d+ has ended$"):
            container.kill(box.directory, signal.SIGKILL)
        assert state.observe(box.directory).status == state.STOPPED
    state.save(box.directory, known._replace(pid=os.getpid(), start_time=state.start_time(os.getpid())))
    with pytest.raises(ContainerError, match="has ended"):
        container.kill(box.directory, signal.SIGKILL)
    state.save(box.directory, known)
    assert box.end().code == 137


def test_a_cgroup_in_use_is_not_shared(keeper: Keeper, config: Make) -> None:
    box = keeper.create(config("sleep", "1000")).start()
    with pytest.raises(ContainerError, match="is in use by another container"):
        keeper.run({**config("true"), "linux": box.spec["linux"]})
    box.signal(signal.SIGKILL)
    box.wait()
    box.delete()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"root__path": "/no/such/root"}, "cannot bind the root /no/such/root on itself: No such file or directory"),
        (
            {"mounts": [{"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}]},
            "cannot bind /no/such on /x: No such file or directory (/no/such)",
        ),
        (
            {"mounts": [{"destination": "/x", "type": "nosuchfs", "source": "x"}]},
            "cannot mount nosuchfs on /x: No such device",
        ),
        (
            {"mounts": [{"destination": "/x", "type": "tmpfs", "source": "x", "options": ["size=much"]}]},
            "cannot mount tmpfs on /x: Invalid argument",
        ),
        ({"process__cwd": "/bin/sh"}, "cannot make the working directory /bin/sh: Not a directory (/bin/sh)"),
    ],
)
def test_a_step_that_fails_is_a_sentence(keeper: Keeper, config: Make, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ContainerError) as refusal:
        keeper.run(config("true", **changes))
    assert str(refusal.value).startswith(words)
    assert "\n" not in str(refusal.value)


def test_a_caller_with_threads_is_refused(keeper: Keeper, config: Make, tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="several threads"):
        arguments = {"directory": keeper.directory(), "spec": config("true"), "output": str(tmp_path / "out")}
        keeper.call("create_with_a_thread", **arguments)


@pytest.mark.needs("overlay")
def test_a_root_on_overlayfs(sh: Sh, rootfs: Path, tmp_path: Path) -> None:
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    mounts.mount("overlay", str(tmp_path / "merged"), "overlay", 0,
                 f"lowerdir={rootfs},upperdir={tmp_path}/upper,workdir={tmp_path}/work")  # fmt: skip
    try:
        assert sh("echo changed >/etc/file; cat /etc/file", root__path=str(tmp_path / "merged")) == "changed\n"
    finally:
        mounts.umount2(str(tmp_path / "merged"))
    assert (tmp_path / "upper/etc/file").read_text() == "changed\n"


@pytest.mark.needs("fuse")
def test_a_root_on_our_union(sh: Sh, rootfs: Path, mount_union: Callable[..., Any]) -> None:
    union = mount_union(str(rootfs), "upper")
    out = sh("echo changed >/etc/file; cat /etc/file; ls -d /proc/1", root__path=union.path)
    assert out == "changed\n/proc/1\n"
    assert Path(union.upper, "etc/file").read_text() == "changed\n"


def test_a_readonly_root(sh: Sh, rootfs: Path) -> None:
    out = sh("touch /x 2>&1 || true; touch /dev/shm/x && echo shm", root__readonly=True)
    assert "Read-only file system" in out and out.endswith("shm\n")
    assert not (rootfs / "x").exists()


def test_several_at_once(keeper: Keeper, config: Make) -> None:
    boxes = [keeper.create(config("sh", "-c", "echo $$; sleep 1000")).start() for _ in range(3)]
    for box in boxes:
        box.until("1\n")
    for box in boxes:
        box.signal(signal.SIGKILL)
        assert box.wait().code == 137
        box.delete()

