"""An image's configuration and the options of `run`, made into an OCI configuration (runtime-spec config.md).

The defaults are Docker's (moby daemon/pkg/oci/defaults.go and caps/defaults.go): mounts, capabilities, masked and
read-only paths. A pure function of its arguments; what only the root file system tells (numeric ids, the home
directory) is filled in by accounts.py once it is mounted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runtime.engine.options import CPU_PERIOD, RunOptions
from runtime.errors import ConfigError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
    "CAP_AUDIT_WRITE",
]  # fmt: skip

MASKED_PATHS = [
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
    "/sys/firmware",
]  # fmt: skip

READ_ONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

_MOUNTS = (
    ("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ["ro", "nosuid", "noexec", "nodev"]),
    ("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
    ("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
)

ETC_FILES = ("resolv.conf", "hostname", "hosts")


def build(
    container_id: str, options: RunOptions, image: Mapping[str, Any], *, rootfs: str, etc: str, hostname: str
) -> dict[str, Any]:
    """The OCI configuration of a new container.

    `image` is the `config` object of an OCI image configuration; `rootfs` the mount point, `etc` the directory with
    the ETC_FILES to bind in. Raises ConfigError when neither image nor options name a command.
    """
    return {
        "ociVersion": "1.2.0",
        "root": {"path": rootfs, "readonly": False},
        "hostname": hostname,
        "process": {
            "terminal": options.terminal,
            "user": {"uid": 0, "gid": 0},
            "args": arguments(options.command, image, options.image),
            "env": environment(image.get("Env") or (), options.env, hostname=hostname, terminal=options.terminal),
            "cwd": options.workdir or image.get("WorkingDir") or "/",
            "capabilities": {name: CAPABILITIES for name in ("bounding", "effective", "permitted")},
            "noNewPrivileges": False,
        },
        "mounts": mounts(options, etc),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "pid", "uts", "ipc", "cgroup")]
            + ([] if options.network == "host" else [{"type": "network"}]),
            "cgroupsPath": f"/fuse-aufs/{container_id}",
            "resources": resources(options),
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READ_ONLY_PATHS,
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
    merged = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if terminal:
        merged["TERM"] = "xterm"
    for entry in (*image, *given):
        name, equals, value = entry.partition("=")
        if equals:
            merged[name] = value
        else:
            merged.pop(name, None)
    return [f"{name}={value}" for name, value in merged.items()]


def mounts(options: RunOptions, etc: str) -> list[dict[str, Any]]:
    """Docker's mounts, then the /etc files, then the volumes, parents before children.

    A volume takes the place of a default with the same destination.
    """
    given = {volume.destination for volume in options.volumes}
    result: list[dict[str, Any]] = [
        {"destination": destination, "type": kind, "source": source, "options": list(flags)}
        for destination, kind, source, flags in _MOUNTS
        if destination not in given
    ]
    result += [
        {"destination": f"/etc/{name}", "type": "bind", "source": f"{etc}/{name}", "options": ["rbind", "rprivate"]}
        for name in ETC_FILES
        if f"/etc/{name}" not in given
    ]
    for volume in sorted(options.volumes, key=lambda volume: volume.destination.count("/")):
        flags = ["rbind", "rprivate", "ro" if volume.read_only else "rw"]
        result.append(
            {"destination": volume.destination, "type": "bind", "source": volume.source, "options": flags}
        )
    return result


def resources(options: RunOptions) -> dict[str, Any]:
    """The limits that were asked for, in the words of config-linux.md; swap is memory and swap together."""
    limits: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if options.memory:
        limits["memory"] = {"limit": options.memory, "swap": 2 * options.memory}
    if options.cpu_quota:
        limits["cpu"] = {"quota": options.cpu_quota, "period": CPU_PERIOD}
    if options.pids:
        limits["pids"] = {"limit": options.pids}
    return limits
