"""cgroup v1's files for the limits of an OCI configuration (kernel Documentation/admin-guide/cgroup-v1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from runtime.oci.resources import DeviceRule, Resources


class Setting(NamedTuple):
    """Write `value` to `file` of the container's directory in the hierarchy that has `controller`."""

    controller: str
    file: str
    value: str


def settings(resources: Resources) -> Iterator[Setting]:
    """In the order in which they must be written."""
    table = (
        ("cpuset", "cpuset.cpus", resources.cpus),
        ("cpuset", "cpuset.mems", resources.mems),
        ("memory", "memory.limit_in_bytes", resources.memory_limit),
        # Never below the limit above, or the kernel answers EINVAL: so after it.
        ("memory", "memory.memsw.limit_in_bytes", resources.memory_swap),
        ("memory", "memory.soft_limit_in_bytes", resources.memory_reservation),
        ("cpu", "cpu.shares", resources.cpu_shares),
        ("cpu", "cpu.cfs_period_us", resources.cpu_period),
        ("cpu", "cpu.cfs_quota_us", resources.cpu_quota),
        ("pids", "pids.max", "max" if resources.pids_limit == -1 else resources.pids_limit),
    )
    for controller, file, value in table:
        if value is not None:
            yield Setting(controller, file, str(value))
    for rule in resources.devices:
        yield Setting("devices", "devices.allow" if rule.allow else "devices.deny", _device(rule))


def _device(rule: DeviceRule) -> str:
    if rule.kind == "a":
        return "a"  # the kernel takes no numbers with it, and it means everything
    major, minor = ("*" if number is None else number for number in (rule.major, rule.minor))
    return f"{rule.kind} {major}:{minor} {rule.access}"
