"""Images whose directories lead elsewhere: what the runtime mounts, writes and reads there is never the host's."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.conftest import PATIENCE, Runtime
from tests.trees import Tree, assert_tree, build
from unionfs.linux import mounts

OUTSIDE: Tree = {
    "hosts": "of the host", "shm": {}, "pts": {}, "passwd": "app:x:0:0::/:/bin/sh\n", "fs": {"cgroup": {}},
    "sys": {"kernel": {}}, "null": "of the host",
}  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host's that looks like what an image's link is taken for."""
    return Path(build(str(tmp_path / "outside"), OUTSIDE))


@pytest.fixture
def image(runtime: Runtime, tmp_path: Path) -> Callable[[dict[str, str]], str]:
    """`image({"etc": "/proc"})`: the name of one with a busybox and these links, "" for an empty file."""

    def make(links: dict[str, str]) -> str:
        path = tmp_path / "image.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(shutil.which("busybox") or "", "bin/busybox", recursive=False)
            for name, target in {"bin/sh": "busybox", "bin/cat": "busybox", **links}.items():
                member = tarfile.TarInfo(name)
                member.type, member.linkname = (tarfile.SYMTYPE, target) if target else (tarfile.REGTYPE, "")
                archive.addfile(member, io.BytesIO())
        runtime("import", path, "hostile")
        return "hostile"

    return make


def check_untouched(runtime: Runtime, outside: Path, before: list[str]) -> None:
    runtime("rmi", "hostile")
    assert [point.target for point in mounts.mountinfo()] == before
    assert_tree(str(outside), OUTSIDE)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("proc", "{outside}"), ("sys", "../../../../../../../../..{outside}"), ("dev", "etc"), ("dev", "{outside}"),
        ("proc", "/proc/self/cwd"),
    ],
)  # fmt: skip
def test_a_kernel_directory_that_is_a_link(
    runtime: Runtime, image: Callable[[dict[str, str]], str], outside: Path, name: str, target: str
) -> None:
    """CVE-2019-19921, CVE-2023-27561: whatever it leads to, nothing is run with it."""
    before = [point.target for point in mounts.mountinfo()]
    made = image({name: target.format(outside=outside)})
    said = runtime.refused("run", "--rm", "--network=none", made, "sh", code=125)
    assert f"on /{name}: it is, or leads through, a symbolic link" in said
    check_untouched(runtime, outside, before)


ETC = {
    "absolute": {"etc": "{outside}"},
    "climbing": {"etc": "../../../../../../../../..{outside}"},
    "to the kernel": {"etc": "/sys"},
    "to devices": {"etc": "/dev"},
    "a file": {"etc": ""},
    "of its files": {f"etc/{name}": f"{{outside}}/{name}" for name in ("hosts", "hostname", "resolv.conf", "passwd")},
    "climbing of its files": {
        f"etc/{name}": f"../../../../../../../..{{outside}}/{name}" for name in ("hosts", "passwd")
    },
}  # fmt: skip


@pytest.mark.parametrize("how", ETC)
def test_an_etc_that_leads_elsewhere(
    runtime: Runtime, image: Callable[[dict[str, str]], str], outside: Path, how: str
) -> None:
    """Its files are put there inside of the image, or nothing is run; and nobody is who the host says."""
    before = [point.target for point in mounts.mountinfo()]
    name = image({link: target.format(outside=outside) for link, target in ETC[how].items()})
    done = runtime.call("run", "--rm", "--network=none", name, "sh", "-c", "echo >>/etc/hosts; cat /etc/hosts")
    if done.returncode == 0:
        assert "127.0.0.1\tlocalhost" in done.stdout
    else:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1), done
    if any("{outside}" in target for target in ETC[how].values()):
        words = ("run", "--rm", "--network=none", "-u", "app", name, "sh")
        assert "unable to find user app" in runtime.refused(*words, code=125)
    check_untouched(runtime, outside, before)


def test_a_working_directory_of_the_images(
    runtime: Runtime, image: Callable[[dict[str, str]], str], outside: Path, tmp_path: Path
) -> None:
    """CVE-2024-21626 by the image's own configuration."""
    runtime("rmi", image({}))
    fd = os.open(outside, os.O_RDONLY)
    try:
        for number in (3, fd):
            runtime("import", "-c", f"WORKDIR /proc/self/fd/{number}", tmp_path / "image.tar", "hostile")
            command = ("run", "--rm", "--network=none", "hostile", "cat", "hosts")
            with runtime.popen(*command, pass_fds=[fd], stdin=subprocess.DEVNULL) as process:
                out, err = process.communicate(timeout=PATIENCE)
            assert (process.returncode, out) == (125, b"")
            assert b"the working directory /proc/self/fd/" in err
            runtime("rmi", "hostile")
    finally:
        os.close(fd)


def test_a_resolv_conf_of_systemds(runtime: Runtime, image: Callable[[dict[str, str]], str], outside: Path) -> None:
    """Root file systems of Debian and its like have it so, and what it leads to is made when they are booted."""
    before = [point.target for point in mounts.mountinfo()]
    stub = "run/systemd/resolve/stub-resolv.conf"
    name = image({"etc/resolv.conf": f"../{stub}", "etc/hostname": f"{outside}/made", "etc/hosts": "hosts.of/this"})
    words = ("run", "--rm", "--network=none", "-h", "here", name, "sh", "-c")
    seen = runtime(*words, f"cat /etc/hostname; cmp /etc/resolv.conf /{stub} && head -n1 /etc/hosts.of/this")
    assert seen == "here\n127.0.0.1\tlocalhost\n"
    check_untouched(runtime, outside, before)
