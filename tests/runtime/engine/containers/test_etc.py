"""resolv.conf, hosts and hostname: a container may write to them, and neither the host's disks nor its memory pay."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.runtime.conftest import Runtime
from unionfs.linux import consts, mounts

pytestmark = pytest.mark.needs("root")

_FILES = ("hosts", "resolv.conf", "hostname")


@contextmanager
def running(runtime: Runtime, *options: str) -> Iterator[str]:
    name = runtime("run", "-d", *options, "box", "sleep", "600").strip()
    try:
        yield name
    finally:
        runtime("rm", "-f", name)


def _size(*places: Path) -> int:
    return sum(
        os.lstat(os.path.join(directory, name)).st_blocks * 512
        for place in places
        for directory, _, names in os.walk(place)
        for name in names
    )


def test_they_cannot_be_filled(runtime: Runtime) -> None:
    with running(runtime, "--network", "none") as name:
        before = _size(runtime.state, runtime.root / "containers")
        for file in _FILES:
            done = runtime.call("exec", name, "dd", "if=/dev/zero", f"of=/etc/{file}", "bs=64k", "count=1024")
            assert done.returncode == 1 and "No space left on device" in done.stderr
        taken = runtime("exec", name, "sh", "-c", "cat /etc/hosts /etc/resolv.conf /etc/hostname | wc -c")
        assert int(taken) < 3 << 20
        assert _size(runtime.state, runtime.root / "containers") - before < 65536


def test_they_are_changed_in_place(runtime: Runtime) -> None:
    with running(runtime, "--network", "none", "-h", "named") as name:
        assert runtime("exec", name, "cat", "/etc/hostname") == "named\n"
        runtime("exec", name, "sh", "-c", "echo 10.0.0.9 other >>/etc/hosts")
        hosts = runtime("exec", name, "cat", "/etc/hosts")
        assert "127.0.0.1\tnamed\n" in hosts and hosts.endswith("10.0.0.9 other\n")
        done = runtime.call("exec", name, "rm", "/etc/hosts")
        assert done.returncode == 1 and "busy" in done.stderr
        kinds = runtime("exec", name, "sh", "-c", "grep -E ' /etc/(hosts|hostname|resolv.conf) ' /proc/mounts")
        for line in kinds.splitlines():
            assert {"rw", "nosuid", "nodev", "noexec"} <= {*line.split()[3].split(",")}, line
        assert kinds.count("\n") == 3
        assert runtime("exec", "-u", "1000", name, "sh", "-c", "ls -l /etc/hosts").startswith("-rw-r--r--")


def test_a_host_with_many_names(runtime: Runtime, tmp_path: Path) -> None:
    """On the host's network they are the host's, however long they are."""
    long = tmp_path / "hosts"
    long.write_text("".join(f"0.0.0.0\tname-{number}.example\n" for number in range(100_000)))
    mounts.mount(str(long), "/etc/hosts", None, consts.MS_BIND)
    try:
        seen = runtime("run", "--rm", "--network", "host", "box", "sh", "-c", "wc -c </etc/hosts; tail -n1 /etc/hosts")
    finally:
        mounts.umount2("/etc/hosts", consts.MNT_DETACH)
    assert seen.split() == [str(long.stat().st_size), "0.0.0.0", "name-99999.example"]


def test_one_of_the_users_own_takes_its_place(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("127.0.0.1 mine\n")
    with running(runtime, "--network", "none", "-v", f"{tmp_path}/mine:/etc/hosts") as name:
        assert runtime("exec", name, "cat", "/etc/hosts") == "127.0.0.1 mine\n"
