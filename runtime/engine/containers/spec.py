"""An image's configuration and the options of `run`, made into an OCI configuration (runtime-spec config.md).

A pure function of its arguments; what only the root file system tells (numeric ids, the home directory) is filled in
by the task once it is mounted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runtime.engine.containers import etc
from runtime.engine.containers.request import CPU_PERIOD, CreateRequest
from runtime.errors import ConfigError
from runtime.oci import defaults


def build(container_id: str, request: CreateRequest, image: Mapping[str, Any], *, hostname: str) -> dict[str, Any]:
    """The OCI configuration of a new container.

    `image` is the `config` object of an OCI image configuration. The root's path is relative to the bundle, which is
    the run directory (config.md, "Root"). Raises ConfigError when neither image nor options name a command.
    """
    return {
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": False},
        "hostname": hostname,
        "process": {
            "terminal": request.terminal,
            "user": {"uid": 0, "gid": 0},
            "args": arguments(request.command, image, request.image),
            "env": environment(image.get("Env") or (), request.env, hostname=hostname, terminal=request.terminal),
            "cwd": request.workdir or image.get("WorkingDir") or "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), defaults.CAPABILITIES),
            "noNewPrivileges": False,
        },
        "mounts": mounts(request),
        "linux": {
            "namespaces": [
                {"type": kind} for kind in defaults.NAMESPACES if kind != "network" or request.network != "host"
            ],
            "cgroupsPath": f"/fuse-aufs/{container_id}",
            "resources": resources(request),
            "maskedPaths": defaults.MASKED_PATHS,
            "readonlyPaths": defaults.READONLY_PATHS,
        },
    }


def arguments(command: Iterable[str], image: Mapping[str, Any], reference: str) -> list[str]:
    """Entrypoint and command: what the user gave replaces the image's Cmd, not its Entrypoint."""
    args = [*(image.get("Entrypoint") or ()), *(list(command) or image.get("Cmd") or ())]
    if not args or not args[0]:
        raise ConfigError(f"No command specified: the image {reference} has none, write one after its name")
    return args


def environment(image: Iterable[str], given: Iterable[str], *, hostname: str, terminal: bool) -> list[str]:
    """PATH, HOSTNAME and, on a terminal, TERM; over them the image's, over them the user's."""
    merged = {"PATH": defaults.PATH, "HOSTNAME": hostname}
    if terminal:
        merged["TERM"] = "xterm"
    for entry in (*image, *given):
        name, equals, value = entry.partition("=")
        if equals:
            merged[name] = value
        else:
            merged.pop(name, None)
    return [f"{name}={value}" for name, value in merged.items()]


def mounts(request: CreateRequest) -> list[dict[str, Any]]:
    """Docker's mounts, then etc.NAMES and the volumes, parents before children: a volume on /etc is below them.

    A volume takes the place of a default with the same destination.
    """
    given = {volume.destination for volume in request.volumes}
    result: list[dict[str, Any]] = [mount for mount in defaults.MOUNTS if mount["destination"] not in given]
    own: list[dict[str, Any]] = [
        {"destination": f"/etc/{name}", "type": "file", "source": name, "options": []}
        for name in etc.NAMES if f"/etc/{name}" not in given
    ]  # fmt: skip
    for volume in request.volumes:
        flags = ["rbind", "rprivate", "ro" if volume.read_only else "rw"]
        own.append({"destination": volume.destination, "type": "bind", "source": volume.source, "options": flags})
    return result + sorted(own, key=lambda mount: mount["destination"].count("/"))


def resources(request: CreateRequest) -> dict[str, Any]:
    """The limits that were asked for, in the words of config-linux.md; swap is memory and swap together."""
    limits: dict[str, Any] = {}
    if request.memory:
        limits["memory"] = {"limit": request.memory, "swap": 2 * request.memory}
    if request.cpu_quota:
        limits["cpu"] = {"quota": request.cpu_quota, "period": CPU_PERIOD}
    if request.pids:
        limits["pids"] = {"limit": request.pids}
    return limits
