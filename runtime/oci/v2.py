"""cgroup v2's files for the limits of an OCI configuration (kernel Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.oci.resources import Resources
from runtime.oci.v1 import Setting


def settings(resources: Resources) -> Iterator[Setting]:
    """In the order in which they must be written. Devices have no file here: see device_program.py."""
    table = (
        ("cpuset", "cpuset.cpus", resources.cpus),
        ("cpuset", "cpuset.mems", resources.mems),
        ("memory", "memory.max", _or_max(resources.memory_limit)),
        ("memory", "memory.swap.max", _swap(resources)),
        ("memory", "memory.low", resources.memory_reservation),
        ("cpu", "cpu.weight", _weight(resources.cpu_shares)),
        ("cpu", "cpu.max", _cpu_max(resources)),
        ("pids", "pids.max", _or_max(resources.pids_limit)),
    )
    for controller, file, value in table:
        if value is not None:
            yield Setting(controller, file, str(value))
    for file, value in resources.unified:
        yield Setting(file.partition(".")[0], file, value)


def _or_max(value: int | None) -> str | None:
    return None if value is None else "max" if value == -1 else str(value)


def _swap(resources: Resources) -> str | None:
    """OCI's number is memory and swap together, v2's is swap alone."""
    total, limit = resources.memory_swap, resources.memory_limit
    if total is None or total == -1:
        return _or_max(total)
    return str(max(0, total - limit)) if limit is not None and limit >= 0 else None


def _weight(shares: int | None) -> int | None:
    """Shares 2..262144 to weight 1..10000, linearly, as every runtime does (config-linux.md, "cpu")."""
    return None if shares is None else 1 + (shares - 2) * 9999 // 262142


def _cpu_max(resources: Resources) -> str | None:
    if resources.cpu_quota is None and resources.cpu_period is None:
        return None
    quota = "max" if resources.cpu_quota in (None, -1) else str(resources.cpu_quota)
    return f"{quota} {resources.cpu_period or 100_000}"
