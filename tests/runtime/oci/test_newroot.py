"""From the host's mounts to the container's root: what is given as a root, what stays of the host, and who may look."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.errors import ConfigError, ContainerError
from runtime.oci import defaults
from tests.runtime.oci.conftest import Config
from tests.runtime.oci.keeper import Keeper
from unionfs.linux import consts, mounts

pytestmark = pytest.mark.needs("root")

Make = Callable[..., Config]


@pytest.fixture
def place(tmp_path: Path) -> str:
    """An empty directory for root.path."""
    (tmp_path / "place").mkdir()
    return str(tmp_path / "place")


@pytest.fixture
def shared(rootfs: Path, tmp_path: Path) -> Iterator[str]:
    """The root as a mount that the host shares, as systemd has it do with all of them."""
    there = tmp_path / "shared"
    there.mkdir()
    mounts.mount(str(rootfs), str(there), None, consts.MS_BIND)
    mounts.mount("none", str(there), None, consts.MS_SHARED)
    yield str(there)
    mounts.umount2(str(there), consts.MNT_DETACH)


def _host() -> str:
    return Path("/proc/self/mountinfo").read_text()


def test_a_root_given_by_descriptor(keeper: Keeper, config: Make, rootfs: Path, place: str) -> None:
    box = keeper.create(config("sh", "-c", "pwd; ls /; echo made >/made", root__path=place), root=str(rootfs)).start()
    result = box.wait()
    box.delete()
    assert result.code == 0
    assert {"bin", "etc", "proc", "dev"} <= set(result.out.split())
    assert (rootfs / "made").read_text() == "made\n"
    assert os.listdir(place) == []


def test_a_root_given_by_descriptor_with_a_namespace_to_join(
    keeper: Keeper, config: Make, rootfs: Path, place: str
) -> None:
    spaces = [{"type": kind} for kind in defaults.NAMESPACES if kind != "network"]
    spaces.append({"type": "network", "path": "/proc/self/ns/net"})
    spec = config("sh", "-c", "ls /proc/1/fd; ls /", root__path=place, linux__namespaces=spaces)
    box = keeper.create(spec, root=str(rootfs)).start()
    result = box.wait()
    box.delete()
    assert result.out.split()[:3] == ["0", "1", "2"]
    assert "busybox" not in result.out and "etc" in result.out


def test_what_is_mounted_in_a_given_root_is_not_on_the_host(
    config: Make, shared: str, place: str, tmp_path: Path
) -> None:
    """A copy of a shared mount is its peer, wherever it is attached (mount_namespaces(7))."""
    keeper = Keeper(str(tmp_path))
    before = _host()
    box = keeper.create(config("sleep", "1000", root__path=place), root=shared)
    assert _host() == before
    box.start()
    assert _host() == before
    box.end()
    keeper.close()


@pytest.mark.parametrize("given", [True, False])
def test_nothing_of_the_hosts_mounts_is_left(config: Make, rootfs: Path, tmp_path: Path, given: bool) -> None:
    """Neither before the start, when somebody may take a long time to attach a network, nor after it."""
    (tmp_path / "older").mkdir()
    mounts.mount("older-than-the-container", str(tmp_path / "older"), "tmpfs")
    try:
        keeper = Keeper(str(tmp_path))
        (tmp_path / "place").mkdir()
        spec = config("sleep", "1000", root__path=str(tmp_path / "place" if given else rootfs))
        box = keeper.create(spec, root=str(rootfs) if given else "")
        assert "older-than-the-container" in Path("/proc/self/mountinfo").read_text()
        assert "older-than-the-container" not in Path(f"/proc/{box.pid}/mountinfo").read_text()
        box.start()
        assert "older-than-the-container" not in Path(f"/proc/{box.pid}/mountinfo").read_text()
        box.end()
        keeper.close()
    finally:
        mounts.umount2(str(tmp_path / "older"))


def test_a_volume_comes_with_the_mounts_below_it(config: Make, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "below").mkdir(parents=True)
    mounts.mount("below-the-volume", str(volume / "below"), "tmpfs")
    try:
        (volume / "below/file").write_text("there\n")
        keeper = Keeper(str(tmp_path))
        bind = {"destination": "/v", "type": "bind", "source": str(volume), "options": ["rbind", "ro"]}
        command = "cat /v/below/file; touch /v/below/new 2>&1; umount /v/below; mount -t tmpfs x /v/below; true"
        result = keeper.run(config("sh", "-c", command, mounts=[*defaults.MOUNTS, bind]))
        assert result.out.startswith("there\ntouch: /v/below/new: Read-only file system\n")
        keeper.close()
    finally:
        mounts.umount2(str(volume / "below"))


def test_two_volumes_keep_their_places(keeper: Keeper, config: Make, tmp_path: Path) -> None:
    """Also where one covers the other, and something else is mounted between them."""
    binds = []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        binds.append({"destination": "/v", "type": "bind", "source": str(tmp_path / name), "options": ["bind"]})
    binds[1]["destination"] = "/w"
    between = {"destination": "/v/between", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]}
    mounted = [*defaults.MOUNTS, binds[0], between, binds[1], binds[2]]
    assert keeper.run(config("sh", "-c", "ls /v /w", mounts=mounted)).out.split() == ["/v:", "three", "/w:", "two"]


def test_a_look_at_the_root(keeper: Keeper, config: Make, rootfs: Path, place: str) -> None:
    (rootfs / "tool").write_text("x")
    (rootfs / "tool").chmod(0o4755)
    box = keeper.create(config("sh", "-c", "echo seen >/made; echo made; sleep 9", root__path=place), root=str(rootfs))
    pid, fd = box.look()
    look = f"/proc/{pid}/fd/{fd}"
    box.start().until("made")
    assert (Path(look) / "made").read_text() == "seen\n"
    flags = os.statvfs(look).f_flag
    wanted = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    assert flags & wanted == wanted
    assert os.listdir(f"{look}/proc") == [], "it shows what is mounted in the container"
    with pytest.raises(OSError, match="Read-only file system"):
        (Path(look) / "new").touch()
    box.end()
    assert os.listdir(f"{look}/bin") == os.listdir(rootfs / "bin")
    keeper.call("close_fd", fd=fd)


def test_a_look_gets_no_mounts_of_the_host(config: Make, rootfs: Path, shared: str, tmp_path: Path) -> None:
    """Where the container itself gets them, as it was asked for."""
    (rootfs / "later").mkdir()
    keeper = Keeper(str(tmp_path))
    box = keeper.create(config("sleep", "1000", root__path=shared, linux__rootfsPropagation="rslave"))
    pid, fd = box.look()
    mounts.mount("later", f"{shared}/later", "tmpfs")
    Path(shared, "later/file").touch()
    try:
        box.start()
        assert os.listdir(f"/proc/{box.pid}/root/later") == ["file"]
        assert os.listdir(f"/proc/{pid}/fd/{fd}/later") == []
    finally:
        box.end()
        keeper.call("close_fd", fd=fd)
        keeper.close()


def test_a_root_that_cannot_be_attached(keeper: Keeper, config: Make, rootfs: Path) -> None:
    with pytest.raises(ContainerError, match=r"^cannot attach the root at /no/such: No such file or directory"):
        keeper.create(config("true", root__path="/no/such"), root=str(rootfs))


def test_files_that_are_not_given(keeper: Keeper, config: Make) -> None:
    spec = config("true")
    spec["mounts"].append({"destination": "/etc/hosts", "type": "file", "source": "hosts"})
    with pytest.raises(ConfigError, match=r"^mounts: there are no files for a mount of type file$"):
        keeper.run(spec)
