"""Limits that really limit, in whatever hierarchies this machine has, and cgroups that do not stay behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.errors import ConfigError, ContainerError
from runtime.oci import cgroups, device_program, resources, v1, v2
from runtime.oci.cgroups import Cgroup
from runtime.oci.reader import Reader
from runtime.oci.resources import NONE, DeviceRule
from tests.runtime.conftest import wait_until
from tests.runtime.oci.conftest import Config, process
from tests.runtime.oci.keeper import Keeper
from unionfs.linux import processes

pytestmark = pytest.mark.needs("root")

Make = Callable[..., Config]
Sh = Callable[..., str]


def _hierarchy(controller: str) -> cgroups.Hierarchy:
    found = next((h for h in cgroups.hierarchies() if controller in h.controllers), None)
    if found is None:
        pytest.skip(f"no cgroup hierarchy with the {controller} controller is mounted")
    return found


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    group = Cgroup(f"/oci-test-{uuid.uuid4().hex[:12]}/group")
    yield group
    group.kill()
    group.remove()


def _rules(*rules: dict[str, object]) -> tuple[DeviceRule, ...]:
    return resources.read(Reader({"devices": list(rules)}, "")).devices


def test_what_is_mounted_is_found() -> None:
    with open("/proc/self/cgroup", encoding="ascii") as table:
        members = {frozenset(line.split(":")[1].split(",")) for line in table}
    found = {frozenset(h.controllers) if h.version == 1 else frozenset([""]) for h in cgroups.hierarchies()}
    assert found <= members


def test_the_pids_limit_stops_a_fork(keeper: Keeper, config: Make) -> None:
    _hierarchy("pids")
    command = "sleep 1000 & sleep 1000 & echo two; sleep 1000 & echo three"
    spec = config("sh", "-c", command, linux__resources={"pids": {"limit": 3}})
    result = keeper.run(spec)
    assert result.out.startswith("two\n") and "can't fork" in result.out and "three" not in result.out
    assert result.code != 0


def test_the_memory_limit_kills_and_the_kill_is_seen(keeper: Keeper, config: Make) -> None:
    _hierarchy("memory")
    limit = 16 << 20
    resources = {"memory": {"limit": limit, "swap": limit}}
    box = keeper.create(config("sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1", linux__resources=resources))
    path = box.spec["linux"]["cgroupsPath"]
    assert Cgroup(path).oom_kills() == 0
    assert box.start().wait().code == 137
    assert Cgroup(path).oom_kills() == 1
    box.delete()
    assert Cgroup(path).oom_kills() == 0  # no such cgroup


def test_a_container_within_its_memory_limit_runs(keeper: Keeper, config: Make) -> None:
    _hierarchy("memory")
    resources = {"memory": {"limit": 6 << 20, "swap": 6 << 20}}  # docker's least
    spec = config("dd", "if=/dev/zero", "of=/dev/null", "bs=1M", "count=4", linux__resources=resources)
    assert keeper.run(spec).code == 0


def test_a_memory_limit_too_small_for_the_start_is_a_sentence(keeper: Keeper, config: Make) -> None:
    _hierarchy("memory")
    resources = {"memory": {"limit": 65536, "swap": 65536}}
    with pytest.raises(ContainerError, match="its process needs more memory than the limit of 65536"):
        keeper.run(config("true", linux__resources=resources))


def test_the_cpu_quota_is_in_force(sh: Sh) -> None:
    hierarchy = _hierarchy("cpu")
    resources = {"cpu": {"quota": 5000, "period": 100000, "shares": 512}}
    files: tuple[str, ...]
    if hierarchy.version == 1:
        files, expected = ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares"), ["5000", "100000", "512"]
    else:
        files, expected = ("cpu.max", "cpu.weight"), ["5000", "100000", "20"]
    where = "/sys/fs/cgroup" if hierarchy.mount_point == "/sys/fs/cgroup" else f"/sys/fs/cgroup/{hierarchy.name}"
    command = " ".join(f"{where}/{file}" for file in files)
    busy = f"until grep -q 'nr_throttled [1-9]' {where}/cpu.stat; do :; done; echo throttled"
    assert sh(f"cat {command}; {busy}", linux__resources=resources).split() == [*expected, "throttled"]


def test_cpusets_are_usable_and_settable(sh: Sh) -> None:
    _hierarchy("cpuset")
    first = min(os.sched_getaffinity(0))
    query = "grep Cpus_allowed_list /proc/self/status"
    assert sh(query, linux__resources={"cpu": {"cpus": str(first)}}).split() == ["Cpus_allowed_list:", str(first)]


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"cpu": {"cpus": "4000"}}, "the kernel refuses cpuset.cpus 4000: "),
        ({"memory": {"limit": 8 << 20, "swap": 4 << 20}}, "the kernel refuses memory.memsw.limit_in_bytes 4194304: "),
    ],
)
def test_what_the_kernel_refuses_is_a_sentence_and_leaves_nothing(
    keeper: Keeper, config: Make, resources: dict[str, object], words: str
) -> None:
    if _hierarchy("memory").version == 2:
        pytest.skip("cgroup v2 has other files")
    with pytest.raises(ConfigError) as refusal:
        keeper.run(config("true", linux__resources=resources))
    assert str(refusal.value).startswith("linux.resources: " + words)


def test_a_limit_without_its_controller_is_refused(keeper: Keeper, config: Make) -> None:
    unified = {"unified": {"nosuch.max": "1"}}
    with pytest.raises(ConfigError, match=r"nosuch\.max 1 cannot be set: no nosuch controller is mounted"):
        keeper.run(config("true", linux__resources=unified))


def test_a_file_of_cgroup_v2_by_its_name(sh: Sh) -> None:
    """linux.resources.unified, and the controllers handed down to the container's directory."""
    hierarchy = next((h for h in cgroups.hierarchies() if h.version == 2 and "hugetlb" in h.controllers), None)
    if hierarchy is None:
        pytest.skip("cgroup v2 with the hugetlb controller is not mounted")
    where = "/sys/fs/cgroup" if hierarchy.mount_point == "/sys/fs/cgroup" else f"/sys/fs/cgroup/{hierarchy.name}"
    limit = {"unified": {"hugetlb.2MB.max": str(4 << 20)}}
    assert sh(f"cat {where}/hugetlb.2MB.max", linux__resources=limit) == f"{4 << 20}\n"


def test_groups_above_go_with_the_last_container_and_an_administrators_stay(cgroup: Cgroup) -> None:
    hierarchy = cgroups.hierarchies()[0]
    admin = f"{hierarchy.mount_point}/oci-test-{uuid.uuid4().hex[:12]}"
    os.mkdir(admin)
    try:
        theirs = Cgroup(f"/{os.path.basename(admin)}/group")
        theirs.create(NONE)
        theirs.remove()
        assert os.path.isdir(admin)
    finally:
        os.rmdir(admin)
    sibling = Cgroup(os.path.dirname(cgroup.path) + "/sibling")
    cgroup.create(NONE)
    sibling.create(NONE)
    above = os.path.dirname(hierarchy.mount_point + cgroup.path)
    cgroup.remove()
    assert os.listdir(above).count("sibling") == 1
    sibling.remove()
    assert not os.path.exists(above)


def test_a_group_above_that_an_earlier_version_made_goes_as_well(cgroup: Cgroup) -> None:
    """It had another mark."""
    above = [os.path.dirname(h.mount_point + cgroup.path) for h in cgroups.hierarchies()]
    for directory in above:
        os.mkdir(directory)
        os.setxattr(directory, "trusted.fuse-aufs.made", b"1")
    cgroup.create(NONE)
    cgroup.remove()
    left = [directory for directory in above if os.path.exists(directory)]
    for directory in left:
        os.rmdir(directory)
    assert left == []


def test_a_group_that_cannot_be_made_is_not_spun_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is missing in a hierarchy may be there again, or never."""
    monkeypatch.setattr(cgroups, "_PATIENCE", 0.3)
    began = time.thread_time()
    with pytest.raises(ContainerError, match=rf"{tmp_path}/cgroup.controllers is missing"):
        cgroups._make(cgroups.Hierarchy(str(tmp_path), 2, ()), "/above/group")
    assert time.thread_time() - began < 0.15


def test_a_group_above_that_nobody_has_filled_yet(keeper: Keeper, config: Make) -> None:
    """Who makes it is about to, or was killed before."""
    hierarchy = _hierarchy("cpuset")
    spec = config("true")
    above = os.path.dirname(hierarchy.mount_point + spec["linux"]["cgroupsPath"])
    os.mkdir(above)
    if hierarchy.version == 1:
        with open(f"{above}/cpuset.cpus", encoding="ascii") as file:
            assert file.read().strip() == ""
    try:
        assert keeper.run(spec).code == 0
    finally:
        os.rmdir(above)


def test_the_mark_of_a_group_above_is_there_from_the_first(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any call, it leaves nothing that the next one does not take along."""
    seen = []
    real = os.mkdir

    def mkdir(path: str, mode: int = 0o777) -> None:
        real(path, mode)
        if os.path.basename(path) != "group":
            seen.append(path)
            raise KeyboardInterrupt

    monkeypatch.setattr("runtime.oci.cgroups.os.mkdir", mkdir)
    monkeypatch.setattr(Cgroup, "remove", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        cgroup.create(NONE)
    monkeypatch.undo()
    assert seen and all(map(os.path.isdir, seen))
    cgroup.create(NONE)
    cgroup.remove()
    assert not any(map(os.path.exists, seen))


def test_a_group_that_goes_while_it_is_filled(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last other container takes it along: for a file that is open already the kernel's word is ENODEV."""
    hierarchy = _hierarchy("cpuset")
    if hierarchy.version == 2:
        pytest.skip("cgroup v2's cpusets need not be filled")
    above = os.path.dirname(hierarchy.mount_point + cgroup.path)
    real = os.open
    gone: list[str] = []

    def then_it_goes(path: str, *arguments: int) -> int:
        fd = real(path, *arguments)
        if path == f"{above}/cpuset.mems" and not gone:
            os.rmdir(above)
            gone.append(path)
        return fd

    monkeypatch.setattr("runtime.oci.cgroups.os.open", then_it_goes)
    cgroup.create(NONE)
    assert gone


_COME_AND_GO = """
import sys
from runtime.oci.cgroups import Cgroup
from runtime.oci.resources import NONE
for number in range(40):
    group = Cgroup(f"{sys.argv[1]}/{sys.argv[2]}-{number}")
    group.create(NONE)
    group.enter()
    Cgroup("").enter()
    group.kill()
    group.remove()
"""


def test_containers_that_begin_and_end_at_once(cgroup: Cgroup) -> None:
    above = os.path.dirname(cgroup.path)
    started = [subprocess.Popen([sys.executable, "-c", _COME_AND_GO, above, name]) for name in "abc"]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert not any(os.path.exists(hierarchy.mount_point + above) for hierarchy in cgroup.hierarchies)


def test_remove_takes_the_groups_below_along(cgroup: Cgroup) -> None:
    cgroup.create(NONE)
    for hierarchy in cgroup.hierarchies:
        os.makedirs(f"{hierarchy.mount_point}{cgroup.path}/inner/most")
    cgroup.remove()
    assert not any(os.path.exists(hierarchy.mount_point + cgroup.path) for hierarchy in cgroup.hierarchies)


@pytest.mark.parametrize("unified", [True, False], ids=["cgroup.kill", "freeze and kill"])
def test_kill_ends_what_forks_on(keeper: Keeper, config: Make, unified: bool) -> None:
    """Processes that make more as fast as they can, in the host's pid namespace so that nothing else kills them."""
    if not unified and all(hierarchy.version == 2 for hierarchy in cgroups.hierarchies()):
        pytest.skip("only cgroup v2 is mounted")
    spaces = [{"type": kind} for kind in ("mount", "network", "uts", "ipc", "cgroup")]
    spawn = "echo 'sh /s & sh /s & sleep 1000' >/s; trap '' HUP TERM; sh /s & echo on; wait"
    box = keeper.create(
        config("sh", "-c", spawn, linux__namespaces=spaces, linux__resources={"pids": {"limit": 100}})
    )
    box.start().until("on")
    group = Cgroup(box.spec["linux"]["cgroupsPath"])
    if not unified:
        group.hierarchies = tuple(h for h in group.hierarchies if h.version == 1)
        group._unified = None
    wait_until(lambda: len(group.pids()) > 4, "there are several")
    group.kill()
    assert group.pids() == []
    assert box.wait().code == 137
    box.delete()


def test_kill_ends_what_is_frozen(keeper: Keeper, config: Make) -> None:
    """By an administrator, say, who has forgotten it."""
    box = keeper.create(config("sleep", "1000")).start()
    group = Cgroup(box.spec["linux"]["cgroupsPath"])
    group.freeze(True)
    group.kill()
    assert box.wait().code == 137
    box.delete()


def test_v1_settings_are_in_an_order_that_the_kernel_takes() -> None:
    resources = NONE._replace(memory_limit=10, memory_swap=20, pids_limit=-1, cpu_period=1000, cpu_quota=-1)
    assert [(s.file, s.value) for s in v1.settings(resources)] == [
        ("memory.limit_in_bytes", "10"), ("memory.memsw.limit_in_bytes", "20"), ("cpu.cfs_period_us", "1000"),
        ("cpu.cfs_quota_us", "-1"), ("pids.max", "max"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"memory_limit": 10, "memory_swap": 30}, [("memory.max", "10"), ("memory.swap.max", "20")]),
        ({"memory_limit": 10, "memory_swap": -1}, [("memory.max", "10"), ("memory.swap.max", "max")]),
        ({"memory_limit": -1}, [("memory.max", "max")]),
        ({"cpu_quota": 5000}, [("cpu.max", "5000 100000")]),
        ({"cpu_quota": -1, "cpu_period": 2000}, [("cpu.max", "max 2000")]),
        ({"cpu_shares": 2}, [("cpu.weight", "1")]),
        ({"cpu_shares": 262144}, [("cpu.weight", "10000")]),
        ({"pids_limit": 7, "unified": (("io.max", "x"),)}, [("pids.max", "7"), ("io.max", "x")]),
    ],
)
def test_v2_settings(changes: dict[str, object], expected: list[tuple[str, str]]) -> None:
    resources = NONE._replace(**changes)  # type: ignore[arg-type]
    assert [(setting.file, setting.value) for setting in v2.settings(resources)] == expected


def _opens(cgroup: Cgroup, path: str, flags: int) -> bool:
    """Whether a process born in the cgroup's v2 directory can open `path`."""
    directory = cgroup.open_unified()
    assert directory is not None
    pid, pidfd = processes.clone3(cgroup=directory)
    if pid == 0:
        try:
            os.close(os.open(path, flags))
        except OSError:
            os._exit(1)
        finally:
            os._exit(0)
    os.close(directory)
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_device_rules_as_a_program(cgroup: Cgroup) -> None:
    """cgroup v2's way, also where v1's devices controller has the job: the program works without any controller."""
    directory = None
    cgroup.create(NONE)
    try:
        directory = cgroup.open_unified()
        if directory is None:
            pytest.skip("cgroup v2 is not mounted")
        device_program.attach(directory, _rules(
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},  # null
            {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"},  # zero
            {"allow": True, "type": "c", "major": 1, "minor": 7, "access": "rw"},  # full, but
            {"allow": False, "type": "c", "major": 1, "minor": 7, "access": "w"},
        ))  # fmt: skip
    finally:
        if directory is not None:
            os.close(directory)
    assert _opens(cgroup, "/dev/null", os.O_RDWR)
    assert _opens(cgroup, "/dev/zero", os.O_RDONLY)
    assert not _opens(cgroup, "/dev/zero", os.O_RDWR)
    assert _opens(cgroup, "/dev/full", os.O_RDONLY)
    assert not _opens(cgroup, "/dev/full", os.O_WRONLY)
    assert not _opens(cgroup, "/dev/full", os.O_RDWR)
    assert not _opens(cgroup, "/dev/random", os.O_RDONLY)


def test_an_added_process_counts(keeper: Keeper, config: Make) -> None:
    _hierarchy("pids")
    box = keeper.create(config("sleep", "1000", linux__resources={"pids": {"limit": 3}})).start()
    added = box.exec(process("sh", "-c", "sleep 1000 & echo one; sleep 1000 & echo two")).start()
    result = added.wait()
    assert result.out.startswith("one\n") and "can't fork" in result.out
    with pytest.raises(ContainerError, match=r"^cannot make a process in the namespaces: Resource temporarily"):
        box.exec(process("true"))
    box.delete()
    assert box.wait().code == 137


def test_what_cannot_be_listed_is_not_empty(tmp_path: Path) -> None:
    """Or a process at its descriptor limit would take a container for one that has ended."""
    script = (
        "import os, resource\n"
        "from runtime.oci.cgroups import Cgroup\n"
        "cgroup = Cgroup('/')\n"
        "assert os.getpid() in cgroup.pids() or cgroup.pids()\n"
        "lowest = os.dup(0)\n"
        "os.close(lowest)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))\n"
        "try: print(cgroup.pids())\n"
        "except OSError as error: print(error.strerror)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "Too many open files\n"
