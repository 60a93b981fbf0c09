"""What a container finds in its root: mounts, devices, masks, volumes; and what an image must not be able to bend."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ConfigError, ContainerError
from runtime.oci import defaults, inroot, options, spec
from runtime.oci import rootfs as steps
from runtime.oci.newroot import Work
from tests.runtime.oci.conftest import Config
from tests.runtime.oci.keeper import Keeper
from unionfs.linux import consts
from unionfs.linux import mounts as linux_mounts

pytestmark = pytest.mark.needs("root")

Make = Callable[..., Config]
Sh = Callable[..., str]


def _bind(source: Path, destination: str, *flags: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", *flags]}


def _table(out: str) -> dict[str, list[str]]:
    """mount(8)'s listing: place -> [type, *options], the topmost for each place."""
    rows = (line.split() for line in out.splitlines())
    return {row[2]: [row[4], *row[5].strip("()").split(",")] for row in rows}


def test_the_kernels_file_systems_are_dockers(sh: Sh) -> None:
    table = _table(sh("mount"))
    expected = {
        "/proc": ("proc", {"rw", "nosuid", "nodev", "noexec"}),
        "/dev": ("tmpfs", {"rw", "nosuid", "size=65536k", "mode=755"}),
        "/dev/pts": ("devpts", {"rw", "nosuid", "noexec", "gid=5", "mode=620", "ptmxmode=666"}),
        "/dev/shm": ("tmpfs", {"rw", "nosuid", "nodev", "noexec", "size=65536k"}),
        "/dev/mqueue": ("mqueue", {"rw", "nosuid", "nodev", "noexec"}),
        "/sys": ("sysfs", {"ro", "nosuid", "nodev", "noexec"}),
    }
    for place, (kind, flags) in expected.items():
        assert table[place][0] == kind
        assert flags <= set(table[place][1:]), place
    assert "ro" in table["/sys/fs/cgroup"]
    assert all("ro" in row for place, row in table.items() if place.startswith("/sys/"))


def test_its_cgroups_are_the_roots_of_what_it_sees(sh: Sh) -> None:
    out = sh("cat /proc/self/cgroup; cat /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null || true")
    assert {line.rpartition(":")[2] for line in out.splitlines() if ":" in line} == {"/"}
    members = {int(line) for line in out.splitlines() if ":" not in line}
    assert 1 in members and 0 not in members  # 0 would be a process of another pid namespace


def test_the_devices_are_dockers(sh: Sh) -> None:
    names = [path for path, _, _ in defaults.DEVICES]
    out = sh(f"stat -c '%n %F %a %t:%T' {' '.join(names)}")
    rows = dict(line.split(" ", 1) for line in out.splitlines())
    assert rows == {
        path: f"character special file 666 {major:x}:{minor:x}" for path, major, minor in defaults.DEVICES
    }
    assert set(sh("ls /dev").split()) == {
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero",
    }  # fmt: skip
    assert sh("echo x | cat /dev/stdin; readlink /dev/ptmx") == "x\npts/ptmx\n"


def test_a_device_of_the_configuration(sh: Sh) -> None:
    device = {"path": "/dev/sub/loop", "type": "b", "major": 7, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6}
    out = sh("stat -c '%F %a %t:%T %u:%g' /dev/sub/loop", linux__devices=[device])
    assert out == "block special file 640 7:3 5:6\n"


def test_only_dockers_devices_can_be_opened(sh: Sh, keeper: Keeper, config: Make) -> None:
    # mknod is allowed, as docker's rules have it; opening is not. 10:237 is /dev/loop-control.
    command = "mknod /dev/k c 10 237; mknod /dev/n c 1 3; cat /dev/n; echo null; cat /dev/k"
    result = keeper.run(config("sh", "-c", command))
    assert result.code == 1
    assert result.out == "null\ncat: can't open '/dev/k': Operation not permitted\n"
    everything = {"devices": [{"allow": True, "access": "rwm"}]}
    assert sh("mknod /dev/k c 10 237; exec 3</dev/k && echo open", linux__resources=everything) == "open\n"


def test_masked_files_read_as_nothing_and_masked_directories_are_empty(sh: Sh) -> None:
    out = sh("stat -c '%t:%T' /proc/keys; cat /proc/keys /proc/timer_list; ls -A /proc/acpi /sys/firmware")
    assert out.split() == ["1:3", "/proc/acpi:", "/sys/firmware:"]
    refusals = sh("touch /sys/firmware/x 2>&1 || true; echo 1 2>&1 >/proc/acpi/x || true")
    assert refusals.count("Read-only file system") == 2


def test_every_masked_path_that_the_host_has_is_masked(sh: Sh) -> None:
    there = [path for path in defaults.MASKED_PATHS if os.path.exists(path)]
    out = sh(f"for p in {' '.join(there)}; do stat -c %F:%t:%T $p; done; ls -A {' '.join(there)} | wc -l")
    assert set(out.splitlines()[:-1]) <= {"character special file:1:3", "directory:0:0"}


def test_readonly_paths_cannot_be_written(sh: Sh) -> None:
    out = sh("for f in sys/kernel/hostname irq/default_smp_affinity; do echo x >/proc/$f || true; done 2>&1")
    assert out.count("Read-only file system") == 2


def test_a_volume_shows_both_ways_and_keeps_out_of_the_hosts_mounts(sh: Sh, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "from-host").write_text("host\n")
    mounts = [*defaults.MOUNTS, _bind(volume, "/deep/in/there")]
    assert sh("cat /deep/in/there/from-host; echo box >/deep/in/there/from-box", mounts=mounts) == "host\n"
    assert (volume / "from-box").read_text() == "box\n"


def test_a_file_can_be_a_volume(sh: Sh, tmp_path: Path, rootfs: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 me\n")
    mounts = [*defaults.MOUNTS, _bind(tmp_path / "hosts", "/etc/hosts")]
    assert sh("cat /etc/hosts", mounts=mounts) == "127.0.0.1 me\n"
    assert (rootfs / "etc/hosts").read_text() == ""


def test_a_readonly_volume_is_readonly_below_other_mounts_too(sh: Sh, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "inner").mkdir(parents=True)
    linux_mounts.mount("tmpfs", str(volume / "inner"), "tmpfs")
    try:
        command = "touch /v/a 2>&1 || true; touch /v/inner/a 2>&1 || true"
        out = sh(command, mounts=[*defaults.MOUNTS, _bind(volume, "/v", "ro")])
    finally:
        linux_mounts.umount2(str(volume / "inner"))
    assert out.count("Read-only file system") == 2


def test_a_volumes_options(sh: Sh, tmp_path: Path) -> None:
    mounts = [*defaults.MOUNTS, _bind(tmp_path, "/v", "nosuid", "noexec", "nodev", "noatime")]
    assert {"nosuid", "noexec", "nodev", "noatime", "rw"} <= set(_table(sh("mount", mounts=mounts))["/v"])


def test_a_volume_through_a_link_of_the_images_stays_inside(sh: Sh, rootfs: Path, tmp_path: Path) -> None:
    (rootfs / "run").mkdir()
    (rootfs / "var").symlink_to("../../../../run")
    (tmp_path / "v").mkdir()
    (tmp_path / "v/file").write_text("here\n")
    assert sh("cat /run/v/file", mounts=[*defaults.MOUNTS, _bind(tmp_path / "v", "/var/v")]) == "here\n"


# -- What went wrong in other runtimes (CVE rows of the reference) --


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_an_image_whose_kernel_directory_is_a_link_is_refused(
    keeper: Keeper, config: Make, rootfs: Path, name: str
) -> None:
    """CVE-2019-19921, CVE-2023-27561, CVE-2026-41579."""
    (rootfs / "elsewhere").mkdir()
    (rootfs / name).symlink_to("elsewhere")
    with pytest.raises(ContainerError, match=rf"^cannot mount \w+ on /{name}: it is, or leads through, a symbolic"):
        keeper.run(config("true"))
    assert not list((rootfs / "elsewhere").iterdir())


def test_a_kernel_directory_that_is_a_file_is_refused(keeper: Keeper, config: Make, rootfs: Path) -> None:
    (rootfs / "proc").write_text("")
    with pytest.raises(ContainerError, match=r"^cannot mount proc on /proc: Not a directory"):
        keeper.run(config("true"))


@pytest.mark.parametrize("target", ["/../../../../../../..{outside}", "../../../../../../../..{outside}", "{outside}"])
def test_a_mount_destination_that_is_a_link_out_does_not_leave(
    keeper: Keeper, config: Make, rootfs: Path, tmp_path: Path, target: str
) -> None:
    """CVE-2021-30465: the link is resolved inside the root, where it dangles, and is made."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (rootfs / "v").symlink_to(target.format(outside=outside))
    (tmp_path / "volume").mkdir()
    assert keeper.run(config("true", mounts=[*defaults.MOUNTS, _bind(tmp_path / "volume", "/v/x")])).code == 0
    assert not list(outside.iterdir())
    assert (rootfs / str(outside).lstrip("/") / "x").is_dir()


def test_a_mount_destination_behind_a_magic_link_is_refused(
    keeper: Keeper, config: Make, rootfs: Path, tmp_path: Path
) -> None:
    """CVE-2021-30465's other way out: /proc/self/root and /proc/self/fd/N lead to the host while the root is built."""
    (rootfs / "v").symlink_to("/proc/self/cwd")
    with pytest.raises(ContainerError, match=r"^cannot bind .* on /v/x: it is, or leads through, a symbolic link"):
        keeper.run(config("true", mounts=[*defaults.MOUNTS, _bind(tmp_path, "/v/x")]))


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("etc/hosts", "/proc/sys/kernel/core_pattern"), ("etc/hosts", "../proc/sys/kernel/core_pattern"),
        ("etc/hosts", "/proc/1/environ"), ("etc/hosts", "/sys/kernel/uevent_seqnum"),
        ("etc/hosts", "/sys/fs/cgroup/pids/made"), ("etc", "/proc/sys/kernel"), ("etc", "/dev/pts"),
        ("etc", "/dev/mqueue"), ("etc", "/host/proc"), ("etc", "/host/sys/kernel"),
    ],
)  # fmt: skip
def test_no_link_of_the_images_leads_a_mount_into_the_kernels_files(
    keeper: Keeper, config: Make, rootfs: Path, tmp_path: Path, link: str, target: str
) -> None:
    """Where something is mounted already it is the kernel's, and the steps that follow count on it; also where it is a
    volume of the user's."""
    shutil.rmtree(rootfs / "etc")
    (rootfs / link).parent.mkdir(exist_ok=True)
    (rootfs / link).symlink_to(target)
    (tmp_path / "hosts").write_text("")
    volumes = [_bind(Path("/proc"), "/host/proc"), _bind(Path("/sys"), "/host/sys")]
    mounts = [*defaults.MOUNTS, *volumes, _bind(tmp_path / "hosts", "/etc/hosts")]
    with pytest.raises(ContainerError, match=r"^cannot bind .* on /etc/hosts: .*(leads into|No such file)"):
        keeper.run(config("true", mounts=mounts))


@pytest.mark.parametrize(
    "changes",
    [
        {"process__cwd": "/link/made"}, {"linux__maskedPaths": ["/link/cpuinfo"]},
        {"linux__readonlyPaths": ["/link/sys"]},
        {"linux__devices": [{"path": "/link/null", "type": "c", "major": 1, "minor": 3}]},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_nor_anything_else_that_is_made(keeper: Keeper, config: Make, rootfs: Path, changes: dict[str, Any]) -> None:
    (rootfs / "link").symlink_to("/proc")
    with pytest.raises(ContainerError, match=r"^cannot .*: it leads into a file system of the kernel's"):
        keeper.run(config("true", **changes))


def test_where_a_mount_is_said_to_be_in_another_it_is(sh: Sh, rootfs: Path, tmp_path: Path) -> None:
    """Volumes below volumes, also in the kernel's directories, and through a link of the image's into a volume."""
    (rootfs / "var").mkdir()
    (rootfs / "var/run").symlink_to("/run")
    for name in ("run", "outer", "inner"):
        (tmp_path / name).mkdir()
    (tmp_path / "inner/file").write_text("here\n")
    mounts = [
        *defaults.MOUNTS, _bind(Path("/sys"), "/host/sys"), _bind(tmp_path / "inner", "/host/sys/kernel"),
        _bind(tmp_path / "outer", "/v"), _bind(tmp_path / "inner", "/v/w/x"), _bind(tmp_path / "run", "/run"),
        _bind(tmp_path / "inner", "/var/run/secrets"), _bind(tmp_path / "inner", "/sys/fs/bpf"),
    ]  # fmt: skip
    out = sh("cat /host/sys/kernel/file /v/w/x/file /run/secrets/file /sys/fs/bpf/file", mounts=mounts)
    assert out == "here\n" * 4


def test_missing_mount_points_are_not_made_through_a_link(
    keeper: Keeper, config: Make, rootfs: Path, tmp_path: Path
) -> None:
    """CVE-2024-45310: no empty file appears on the host."""
    (rootfs / "etc/resolv.conf").symlink_to(f"{tmp_path}/made")
    (tmp_path / "resolv").write_text("")
    mounts = [*defaults.MOUNTS, _bind(tmp_path / "resolv", "/etc/resolv.conf")]
    assert keeper.run(config("true", mounts=mounts)).code == 0
    assert not (tmp_path / "made").exists()


# Links of an image, by place; the mount goes to PLACE/place.
LINKS = {
    "dangling": {"place": "../run/systemd/resolve/stub"},
    "absolute": {"place": "/run/systemd/absolute"},
    "out": {"place": "../../../../run/out"},
    "chain": {"place": "second", "second": "/chain/third/fourth", "third": "fifth"},
    "up": {"place": "none/../../sbin/place"},
    "dev": {"place": "/dev/made/here"},
    "shm": {"place": "/dev/shm/here"},
    "above": {"": "private/above"},
    "slash": {"place": "missing/"},
}


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_a_link_leads_to_is_made(sh: Sh, rootfs: Path, tmp_path: Path, kind: str) -> None:
    """systemd-resolved has /etc/resolv.conf lead to a file that is there while it runs."""
    places = [place for place in LINKS if (place, kind) != ("slash", "file")]  # that is the name of a directory
    for place in places:
        for link, target in LINKS[place].items():
            (rootfs / place / link).parent.mkdir(exist_ok=True)
            (rootfs / place / link).symlink_to(target)
    for place in places:
        (tmp_path / f"{kind}-{place}").mkdir()
        (tmp_path / f"{kind}-{place}/file").write_text(f"{place}\n")
    end = "" if kind == "directory" else "/file"
    volumes = [_bind(Path(f"{tmp_path}/{kind}-{place}{end}"), f"/{place}/place") for place in places]
    command = "; ".join(f"cat /{place}/place{'/file' if kind == 'directory' else ''}" for place in places)
    assert sh(command, mounts=[*defaults.MOUNTS, *volumes]).split() == places


def test_a_working_directory_and_a_device_by_a_dangling_link(sh: Sh, rootfs: Path) -> None:
    (rootfs / "work").symlink_to("/srv/work")
    (rootfs / "devices").symlink_to("srv/devices")
    devices = [{"path": "/devices/nothing", "type": "c", "major": 1, "minor": 3}]
    changes = {"process__cwd": "/work/here", "linux__devices": devices}
    assert sh("pwd; ls /srv/devices", **changes).split() == ["/srv/work/here", "nothing"]


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ({"place": "place"}, "symbolic link"), ({"place": "other", "other": "/etc/place"}, "symbolic link"),
        ({"place": "/etc/file/place"}, "Not a directory"), ({"place": "/proc/made"}, "leads into|No such file"),
        ({"place": "../sys/fs/cgroup/pids/made/place"}, "leads into"), ({"place": "/dev/pts/made"}, "leads into"),
        ({"place": "/dev/mqueue/made"}, "leads into"), ({"place": "/host/sys/made"}, "leads into"),
        ({"place": "/host/proc/sys/made"}, "leads into"), ({"place": "second", "second": "/proc/made"}, "leads into"),
    ],
)  # fmt: skip
def test_links_that_lead_where_nothing_is_made(
    keeper: Keeper, config: Make, rootfs: Path, tmp_path: Path, links: dict[str, str], says: str
) -> None:
    """A cgroup, a message queue or whatever else the kernel makes of a name is not the image's to ask for."""
    (rootfs / "etc/file").write_text("")
    for link, target in links.items():
        (rootfs / "etc" / link).symlink_to(target)
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    volumes = [_bind(Path("/proc"), "/host/proc"), _bind(Path("/sys"), "/host/sys")]
    for source in ("file", "directory") if "mqueue" in links["place"] else ("directory",):
        mounts = [*defaults.MOUNTS, *volumes, _bind(tmp_path / source, "/etc/place")]
        with pytest.raises(ContainerError, match=rf"^cannot bind .* on /etc/place: .*({says})"):
            keeper.run(config("true", mounts=mounts))


@pytest.mark.parametrize(
    ("there", "source", "says"),
    [
        ("directory", "file", "a directory is there, and what is to be put there is none"),
        ("file", "directory", "Not a directory"),
    ],
)
@pytest.mark.parametrize("link", [False, True])
def test_a_place_of_the_wrong_kind(
    keeper: Keeper, config: Make, rootfs: Path, tmp_path: Path, there: str, source: str, says: str, link: bool
) -> None:
    for place in (rootfs / "srv", tmp_path / "from"):
        (place / "directory").mkdir(parents=True)
        (place / "file").write_text("")
    if link:
        (rootfs / "place").symlink_to(f"srv/{there}")
    destination = "/place" if link else f"/srv/{there}"
    with pytest.raises(ContainerError, match=rf"^cannot bind .* on {destination}: {says}"):
        keeper.run(config("true", mounts=[*defaults.MOUNTS, _bind(tmp_path / "from" / source, destination)]))


def test_a_mask_is_never_what_the_image_calls_dev_null(
    keeper: Keeper, config: Make, rootfs: Path, tmp_path: Path
) -> None:
    """CVE-2025-31133: without a tmpfs on /dev, the image's own /dev/null is met."""
    mounts = [mount for mount in defaults.MOUNTS if not str(mount["destination"]).startswith("/dev")]
    (tmp_path / "secret").write_text("secret\n")
    (rootfs / "dev").mkdir()
    (rootfs / "dev/null").symlink_to("/proc/sysrq-trigger")
    with pytest.raises(ContainerError, match=r"^cannot make the device nodes: something else has its name"):
        keeper.run(config("cat", "/proc/keys", mounts=mounts))
    (rootfs / "dev/null").unlink()
    os.mknod(rootfs / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with pytest.raises(ContainerError, match=r"^cannot make the device nodes: something else has its name"):
        keeper.run(config("cat", "/proc/keys", mounts=mounts))
    (rootfs / "dev/null").unlink()
    os.mknod(rootfs / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert keeper.run(config("cat", "/proc/keys", mounts=mounts)) == (0, "")


def test_a_mask_is_never_another_device(rootfs: Path) -> None:
    """CVE-2025-31133 once more, at the mask itself: what it was handed must be the null device."""
    (rootfs / "secret").write_text("")
    work = Work()
    work.root = inroot.Root(os.open(rootfs, os.O_PATH))
    work.null_fd = os.open("/dev/zero", os.O_PATH)
    with pytest.raises(OSError, match="not the null device"):
        steps.Mask("/secret").apply(work)
    os.close(work.null_fd)
    work.root.close()


def test_a_place_that_is_swapped_while_it_is_mounted_on_is_noticed(rootfs: Path, tmp_path: Path) -> None:
    """CVE-2021-30465: resolved, then replaced through a shared volume, then mounted on."""
    (rootfs / "place").mkdir()
    root = inroot.Root(os.open(rootfs, os.O_PATH))
    target = root.directory("/place")
    (rootfs / "place").rename(rootfs / "moved")
    (rootfs / "place").mkdir()
    volume = linux_mounts.open_tree(consts.AT_FDCWD, str(tmp_path), consts.OPEN_TREE_CLONE)
    try:
        with pytest.raises(OSError, match="replaced while it was being mounted on"):
            root.attach(volume, "/place", target)
    finally:
        for fd in (volume, target):
            os.close(fd)
        root.close()
        linux_mounts.umount2(str(rootfs / "moved"))


def test_a_link_of_the_image_with_a_long_target_that_is_missing(rootfs: Path) -> None:
    """What it says is made; not as deep as the interpreter goes, and not without an end."""
    names = [f"d{number % 10}" for number in range(1300)]
    (rootfs / "long").symlink_to("/".join([*names, "end"]))
    (rootfs / "longer").symlink_to("long/more")
    for number in range(50):
        (rootfs / f"chain{number}").symlink_to(f"chain{number + 1}/x")
    root = inroot.Root(os.open(rootfs, os.O_PATH))
    try:
        for path in ("/longer", "/long"):
            fd = root.directory(path)
            assert os.readlink(f"/proc/self/fd/{fd}").endswith("/end/more" if path == "/longer" else "/d9/end")
            os.close(fd)
        fd = root.file("/long/more/file")
        assert stat.S_ISREG(os.fstat(fd).st_mode)
        os.close(fd)
        with pytest.raises(OSError, match="symbolic link") as looped:
            root.directory("/chain0")
        assert looped.value.errno == errno.ELOOP
        with pytest.raises(OSError, match="name too long") as long:
            root.directory("/long/" + "x" * 256)
        assert long.value.errno == errno.ENAMETOOLONG
    finally:
        root.close()
        subprocess.run(["rm", "-r", rootfs / "d0"], check=True)  # deeper than shutil.rmtree goes


def test_what_cannot_be_made_is_told_with_its_path(tmp_path: Path) -> None:
    linux_mounts.mount("tmpfs", str(tmp_path), "tmpfs", 0, "nr_inodes=3")
    try:
        (tmp_path / "etc").mkdir()
        (tmp_path / "link").symlink_to("etc/deep/file")
        root = inroot.Root(os.open(tmp_path, os.O_PATH))
        try:
            for asked, told in (("/etc/deep/directory", "/etc/deep"), ("/link", "/etc/deep"), ("/file", "/file")):
                with pytest.raises(OSError, match="No space left") as full:
                    root.file(asked)
                assert full.value.filename == told
        finally:
            root.close()
    finally:
        linux_mounts.umount2(str(tmp_path))


def test_nothing_but_proc_is_mounted_in_proc(keeper: Keeper, config: Make, tmp_path: Path) -> None:
    """CVE-2025-52881's ground: a /proc of somebody's making."""
    for destination in ("/proc", "/proc/self", "/proc/../proc/sys"):
        with pytest.raises(ConfigError, match="inside /proc"):
            keeper.run(config("true", mounts=[*defaults.MOUNTS, _bind(tmp_path, destination)]))


def test_no_file_of_the_image_takes_a_sysctl(sh: Sh, rootfs: Path) -> None:
    """CVE-2025-52881: what is written for the kernel is written before the image can stand in its way."""
    trap = rootfs / "proc/sys/net/ipv4/ip_default_ttl"
    trap.parent.mkdir(parents=True)
    trap.write_text("image\n")
    (rootfs / "proc/self").mkdir()
    (rootfs / "proc/self/oom_score_adj").write_text("image\n")
    query = "cat /proc/sys/net/ipv4/ip_default_ttl /proc/self/oom_score_adj"
    changes = {"linux__sysctl": {"net.ipv4.ip_default_ttl": "77"}, "process__oomScoreAdj": 9}
    assert sh(query, **changes).split() == ["77", "9"]
    no_proc = [mount for mount in defaults.MOUNTS if mount["destination"] != "/proc"]
    assert sh(query, mounts=no_proc, **changes).split() == ["image", "image"]


# -- The plan --


def test_the_steps_and_their_order(rootfs: Path, config: Make) -> None:
    wanted = spec.parse(config("true", root__readonly=True, mounts=[*defaults.MOUNTS, _bind(rootfs, "/v")]))
    sentences = [step.describe() for step in steps.plan(wanted, ())]
    # Between the copy of the host's mounts and the end of it there is nothing that could take long.
    assert sentences[:4] == [
        f"bind {rootfs} on /v", "make the mounts private", f"bind the root {rootfs} on itself", "pivot into the root"
    ]  # fmt: skip
    given = [step.describe() for step in steps.plan(wanted, (), given=True)]
    assert given == [*sentences[:2], f"attach the root at {rootfs}", *sentences[3:]]
    assert sentences[-1] == "make the root read-only"
    assert sentences.index("make the device nodes") > sentences.index("mount tmpfs on /dev")
    assert sentences.index("mask /proc/kcore") > sentences.index("make the device nodes")


def test_the_last_of_contradicting_options_wins() -> None:
    assert options.sort(["ro", "rw"])[:2] == (0, consts.MOUNT_ATTR_RDONLY)
    assert options.sort(["noexec", "exec", "nosuid"])[:2] == (consts.MOUNT_ATTR_NOSUID, consts.MOUNT_ATTR_NOEXEC)
    assert options.sort(["noatime", "strictatime"]).attr_set == consts.MOUNT_ATTR_STRICTATIME
    assert options.sort(["rro", "rslave", "rbind", "size=1k", "flag"]) == (
        consts.MOUNT_ATTR_RDONLY, 0, consts.MS_SLAVE, True, (("size", "1k"), ("flag", None)),
    )  # fmt: skip
