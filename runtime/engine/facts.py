"""What this machine and this installation offer, for `info`: looked at, never changed."""

from __future__ import annotations

import os
from collections import Counter
from typing import NamedTuple

from drivers import catalog
from drivers.disk.programs import find
from runtime.engine.installation import Installation
from runtime.engine.state import Status
from runtime.errors import NoSuchContainer
from runtime.oci.cgroups import hierarchies

LIMITS = ("cpu", "memory", "pids")
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


class Driver(NamedTuple):
    name: str
    works: bool
    reason: str


class Feature(NamedTuple):
    name: str
    present: bool
    detail: str


def drivers(installation: Installation) -> list[Driver]:
    return [Driver(name, *catalog.probe(name, installation.paths.driver(name))[:2]) for name in catalog.NAMES]


def containers(installation: Installation) -> Counter[Status]:
    found: Counter[Status] = Counter()
    for container in (*installation.containers, *installation.containers.damaged()):
        try:
            found[container.state().status] += 1
        except NoSuchContainer:
            continue
    return found


def cgroups() -> tuple[str, list[tuple[str, int]]]:
    """How cgroups are mounted (v1, v2, hybrid or not at all), and each controller with its version."""
    mounted = hierarchies()
    versions = {hierarchy.version for hierarchy in mounted}
    layout = "hybrid" if len(versions) > 1 else next((f"v{version}" for version in versions), "not mounted")
    controllers = {
        name: hierarchy.version
        for hierarchy in mounted
        for name in hierarchy.controllers
        if not name.startswith("name=")
    }
    return layout, sorted(controllers.items())


def features() -> list[Feature]:
    """What of the kernel and its tools containers are made with."""
    with open("/proc/filesystems", encoding="ascii") as table:
        filesystems = {line.split()[-1] for line in table}
    nat = next((tool for tool in ("nft", "iptables") if find(tool)), "")
    return [
        Feature("fuse", os.path.exists("/dev/fuse"), "/dev/fuse"),
        Feature("overlayfs", "overlay" in filesystems, "in /proc/filesystems"),
        Feature("namespaces", True, " ".join(name for name in _NAMESPACES if os.path.exists(f"/proc/self/ns/{name}"))),
        Feature("seccomp", os.path.exists("/proc/sys/kernel/seccomp"), "filters"),
        Feature("masquerading", bool(nat), nat or "neither nft nor iptables is installed"),
        Feature("zstd", bool(find("zstd")), "for image archives that zstd packed"),
    ]
