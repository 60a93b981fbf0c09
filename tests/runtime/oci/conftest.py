"""A small root file system, configurations for it, and a process that creates the containers."""

from __future__ import annotations

import copy
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.oci import defaults
from runtime.oci.cgroups import Cgroup
from tests.runtime.oci.keeper import Keeper

_APPLETS = (
    "sh", "cat", "chmod", "chown", "cut", "dd", "dirname", "echo", "env", "false", "grep", "head", "hostname", "id",
    "ip", "kill", "ln", "ls", "mkdir", "mknod", "mount", "ps", "readlink", "seq", "sleep", "stat", "stty", "tail",
    "test", "touch", "tr", "true", "tty", "umount", "unshare", "wc",
)  # fmt: skip

Config = dict[str, Any]


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A root with a static busybox and nothing else: no /proc, /sys, /dev."""
    root = tmp_path / "rootfs"
    make_root(root)
    return root


def make_root(root: Path) -> None:
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in _APPLETS:
        (root / "bin" / applet).symlink_to("busybox")


@pytest.fixture
def config(rootfs: Path) -> Iterator[Callable[..., Config]]:
    """`config("sh", "-c", …)` is docker's default configuration of the rootfs with that command.

    Keywords are dotted paths with double underscores: process__terminal=True. The test fails if a cgroup of such a
    configuration is left afterwards.
    """
    name = f"oci-test-{uuid.uuid4().hex[:12]}"
    made: list[Config] = []

    def make(*args: str, **changes: Any) -> Config:
        result: Config = {
            "ociVersion": "1.2.0",
            "root": {"path": str(rootfs)},
            "hostname": "box",
            "mounts": copy.deepcopy(list(defaults.MOUNTS)),
            "process": process(*args),
            "linux": {
                "namespaces": [{"type": kind} for kind in defaults.NAMESPACES],
                "cgroupsPath": f"/{name}/{len(made)}",
                "maskedPaths": list(defaults.MASKED_PATHS),
                "readonlyPaths": list(defaults.READONLY_PATHS),
            },
        }
        for path, value in changes.items():
            *above, last = path.split("__")
            place = result
            for key in above:
                place = place.setdefault(key, {})
            place[last] = value
        made.append(result)
        return result

    yield make
    left = [directory for directory, _, _ in os.walk("/sys/fs/cgroup") if name in directory]
    if left:  # a failed test must not keep the next one's processes company
        for spec in made:
            group = Cgroup(spec["linux"]["cgroupsPath"])
            group.kill()
            group.remove()
    assert not left, f"cgroups left behind: {left}"


def process(*args: str) -> Config:
    return {
        "args": list(args),
        "env": [f"PATH={defaults.PATH}"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "capabilities": {kind: list(defaults.CAPABILITIES) for kind in ("bounding", "permitted", "effective")},
    }


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(str(tmp_path))
    yield keeper
    keeper.close()


@pytest.fixture
def sh(keeper: Keeper, config: Callable[..., Config]) -> Callable[..., str]:
    """`sh("command", **changes)` is what the command prints in a container of its own; it must end with 0."""

    def run(command: str, **changes: Any) -> str:
        result = keeper.run(config("sh", "-ec", command, **changes))
        assert result.code == 0, result
        return result.out

    return run
