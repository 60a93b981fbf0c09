"""`runtime run`: every option, exit codes, and what a container sees."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.runtime.conftest import IMAGE, Runtime, links


def test_output_goes_where_it_came_from(runtime: Runtime) -> None:
    done = runtime.call("run", "--rm", "--network=none", IMAGE, "sh", "-c", "echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -TERM $$; kill -KILL $$", 0),
        ("sh -c 'kill -9 $$'; exit $?", 137), ("sh -c 'kill -TERM $$'; exit $?", 143), ("nothing-like-this", 127),
        ("/etc/motd", 126),
    ],
)  # fmt: skip
def test_exit_code_is_the_commands(runtime: Runtime, command: str, code: int) -> None:
    """Pid 1 does not get signals that it has no handler for, not even its own SIGKILL (pid_namespaces(7))."""
    assert runtime.call("run", "--rm", "--network=none", IMAGE, "sh", "-c", command).returncode == code


def test_the_images_command_is_the_default(runtime: Runtime) -> None:
    assert runtime.run("-i", IMAGE, stdin="echo from $0\n") == "from sh\n"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("nothing-like-this", 127, "nothing-like-this"), ("/bin/nothing-like-this", 127, "/bin/nothing-like-this"),
        ("/etc/motd", 126, "/etc/motd"), ("/etc", 126, "/etc"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_started(runtime: Runtime, command: str, code: int, said: str) -> None:
    """With --rm the container is gone, and its name is free; else it is there as it was created, with the reason."""
    for _ in range(2):
        assert said in runtime.refused("run", "--rm", "--name=unstarted", IMAGE, command, code=code)
    assert runtime.ids() == []
    told = runtime.refused("run", "--name=unstarted", IMAGE, command, code=code)
    assert runtime.status("unstarted") == "Created"
    assert runtime("ps", "-q") == ""
    shown = json.loads(runtime("inspect", "unstarted"))[0]["State"]
    assert (shown["Status"], shown["Running"], shown["ExitCode"], shown["Pid"]) == ("created", False, code, 0)
    assert f"runtime: {shown['Error']}\n" == told
    assert shown["StartedAt"] == shown["FinishedAt"] == "0001-01-01T00:00:00Z"
    assert "not running" in runtime.refused("exec", "unstarted", "true", code=1)
    assert runtime("stop", "unstarted") == "unstarted\n"
    assert "already in use" in runtime.refused("run", "--name=unstarted", IMAGE, "true", code=125)
    assert runtime("rm", "unstarted") == "unstarted\n"
    assert links() == ["lo"]


def test_pruned_with_those_that_have_ended(runtime: Runtime) -> None:
    runtime.refused("run", "--name=unstarted", "--network=none", IMAGE, "nothing-like-this", code=127)
    (unstarted,) = runtime.ids()
    assert unstarted in runtime("container", "prune", "-f")
    assert runtime.ids() == []


def test_options_end_at_the_image(runtime: Runtime) -> None:
    assert runtime.run(IMAGE, "echo", "--rm", "-it", "--", "-x") == "--rm -it -- -x\n"
    assert runtime.run("--", IMAGE, "echo", "x") == "x\n"


def test_environment(runtime: Runtime) -> None:
    shown = runtime.run(
        "-e", "GIVEN=a=b c", "-eTAKEN", "-e", "ABSENT", "--hostname=hull", IMAGE, "env", env={"TAKEN": "from here"}
    )
    assert sorted(shown.splitlines()) == [
        "GIVEN=a=b c", "HOME=/root", "HOSTNAME=hull",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TAKEN=from here",
    ]  # fmt: skip


def test_host_name_and_the_files_that_go_with_it(runtime: Runtime) -> None:
    look = "hostname; cat /etc/hostname; grep -c hull /etc/hosts"
    assert runtime.run("--hostname=hull", IMAGE, "sh", "-c", look) == "hull\nhull\n1\n"
    first, second = runtime.run(IMAGE, "sh", "-c", "hostname; cat /etc/hostname").splitlines()
    assert first == second
    assert re.fullmatch("[0-9a-f]{12}", first)


def test_working_directory(runtime: Runtime) -> None:
    assert runtime.run(IMAGE, "pwd") == "/\n"
    assert runtime.run("-w", "/home/app", IMAGE, "pwd") == "/home/app\n"
    assert runtime.run("-w", "/made/for/it", IMAGE, "pwd") == "/made/for/it\n"


def test_user(runtime: Runtime) -> None:
    assert runtime.run("-u", "app", IMAGE, "sh", "-c", "id -u; id -G; echo $HOME") == "1000\n1000 50\n/home/app\n"
    assert runtime.run("-u", "7:8", IMAGE, "sh", "-c", "id -u; id -G") == "7\n8\n"
    assert "nobody" in runtime.refused("run", "--rm", "-u", "nobody", IMAGE, "id", code=125)


def test_volumes(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "file").write_text("one file\n")
    script = "echo kept >/data/new; mkdir /data/sub; touch /data/sub/f"
    runtime.run("-v", f"{tmp_path}/shared:/data", IMAGE, "sh", "-c", script)
    assert (tmp_path / "shared/new").read_text() == "kept\n"
    again = runtime.call(
        "run", "--rm", "--network=none", "-v", f"{tmp_path}/shared:/data:ro", "-v", f"{tmp_path}/file:/data/sub/f",
        IMAGE, "sh", "-c", "cat /data/new /data/sub/f; echo x >/data/new",
    )  # fmt: skip
    assert again.stdout == "kept\none file\n", again.stderr
    assert "Read-only file system" in again.stderr
    assert again.returncode == 1
    assert (tmp_path / "shared/new").read_text() == "kept\n"


def test_a_volumes_missing_source_becomes_a_directory(runtime: Runtime, tmp_path: Path) -> None:
    runtime.run("-v", f"{tmp_path}/not/there:/data", IMAGE, "touch", "/data/x")
    assert os.listdir(tmp_path / "not/there") == ["x"]
    (tmp_path / "file").touch()
    assert "file/x" in runtime.refused("run", "--rm", "-v", f"{tmp_path}/file/x:/data", IMAGE, "true", code=125)


def test_memory_limit(runtime: Runtime) -> None:
    """Twice the limit in the memory of one process: the kernel kills it, and the shell above it tells."""
    command = "head -c 32m /dev/zero | tail -c 32m | wc -c"
    assert runtime.run(IMAGE, "sh", "-c", command) == "33554432\n"
    limited = runtime.call("run", "--rm", "--network=none", "--memory=12m", IMAGE, "sh", "-c", command)
    assert limited.stdout == "0\n"
    assert "Killed" in limited.stderr


def test_pids_limit(runtime: Runtime) -> None:
    """The shell is one; so three more fit."""
    command = "for i in 1 2 3 4 5; do sleep 100 & done; echo; jobs | wc -l"
    limited = runtime.call("run", "--rm", "--network=none", "--pids-limit=4", IMAGE, "sh", "-c", command)
    assert "can't fork: Resource temporarily unavailable" in limited.stderr
    assert runtime.run("--pids-limit=20", IMAGE, "sh", "-c", command).split() == ["5"]


def test_cpu_limit_is_the_quota_of_its_cgroup(runtime: Runtime) -> None:
    look = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us || cat /sys/fs/cgroup/cpu.max"
    shown = runtime.run("--cpus=0.5", IMAGE, "sh", "-c", f"{{ {look}; }} 2>/dev/null")
    assert shown.split() == ["50000", "100000"]


def test_own_namespaces(runtime: Runtime) -> None:
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
    shown = runtime.run(IMAGE, "sh", "-c", f"for k in {' '.join(kinds)}; do readlink /proc/self/ns/$k; done").split()
    assert not {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds} & set(shown)
    assert runtime.run(IMAGE, "sh", "-c", "echo $$") == "1\n"


def test_networks(runtime: Runtime) -> None:
    none = ("sh", "-c", "ls /sys/class/net; cat /proc/net/route | wc -l")
    assert runtime("run", "--rm", "--network=none", IMAGE, *none).split() == ["lo", "1"]
    look = "ls /sys/class/net; ip -4 -o addr show eth0; ip route; cat /etc/hosts"
    bridged = runtime("run", "--rm", IMAGE, "sh", "-c", look)
    assert bridged.split()[:2] == ["eth0", "lo"]
    address = re.search(r"inet (\S+)/", bridged)
    assert address is not None
    assert re.search(r"^default via \S+ dev eth0", bridged, re.MULTILINE)
    assert f"\n{address[1]}\t" in bridged
    assert os.readlink("/proc/self/ns/net") in runtime(
        "run", "--rm", "--network=host", IMAGE, "readlink", "/proc/self/ns/net"
    )
    assert links() == ["lo"]


def test_two_containers_reach_each_other(runtime: Runtime) -> None:
    first = runtime("run", "-d", "--name=server", IMAGE, "sh", "-c", "echo served | nc -l -p 7000")
    address = runtime("exec", "server", "hostname", "-i").strip()
    fetch = f"until nc {address} 7000; do sleep 0.1; done"
    assert runtime("run", "--rm", IMAGE, "timeout", "20", "sh", "-c", fetch) == "served\n"
    assert len(first.strip()) == 64
    runtime("rm", "-f", "server")
    assert links() == ["lo"]


def test_detached_prints_the_id_and_goes_on(runtime: Runtime, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    options = ("-d", "--rm", "--name=worker", "--network=none", "-v", f"{tmp_path}:/data")
    shown = runtime("run", *options, IMAGE, "sh", "-c", "echo ready; cat /data/fifo")
    assert re.fullmatch("[0-9a-f]{64}\n", shown)
    assert runtime("ps", "-q").split() == [shown[:12]]
    with runtime.popen("logs", "-f", "worker") as follow:
        assert follow.stdout is not None
        assert follow.stdout.readline() == b"ready\n"
        fifo.write_text("through\n")
        assert follow.stdout.read() == b"through\n"
    assert runtime.ids() == []


def test_a_name_is_for_one_container(runtime: Runtime) -> None:
    runtime("run", "--name=once", "--network=none", IMAGE, "true")
    assert "once" in runtime.refused("run", "--rm", "--name=once", IMAGE, "true", code=125)
    runtime("rm", "once")


def test_two_runs_at_once(runtime: Runtime) -> None:
    running = [runtime.popen("run", "--rm", IMAGE, "sh", "-c", f"echo {n}; hostname -i") for n in range(4)]
    shown = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * 4, shown
    assert [out.split()[0] for out, _ in shown] == [b"0", b"1", b"2", b"3"]
    assert len({out.split()[1] for out, _ in shown}) == 4
    assert links() == ["lo"]


def test_defaults_of_security(runtime: Runtime) -> None:
    script = """
        grep -E 'CapInh|CapEff|CapBnd|NoNewPrivs' /proc/self/status; echo x >/proc/sys/kernel/domainname
        mknod /tmp/disk b 254 0 && cat /tmp/disk; wc -c </proc/timer_list
    """
    shown = runtime.run(IMAGE, "sh", "-c", script)
    assert re.findall(r":\s+(\w+)", shown) == ["0000000000000000", "00000000a80425fb", "00000000a80425fb", "0"]
    assert shown.splitlines()[-1] == "0"


def test_descriptors_of_the_caller_stay_outside(runtime: Runtime) -> None:
    """CVE-2024-21626: an inherited descriptor of a host directory."""
    fd = os.open("/", os.O_RDONLY)
    with runtime.popen("run", "--rm", "--network=none", IMAGE, "ls", "/proc/self/fd", pass_fds=[fd]) as process:
        out, _ = process.communicate()
    os.close(fd)
    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3 is ls's own
