"""The limits of an OCI configuration, linux.resources (runtime-spec config-linux.md, "Control groups")."""

from __future__ import annotations

from typing import NamedTuple

from runtime.oci import defaults
from runtime.oci.reader import Reader


class DeviceRule(NamedTuple):
    allow: bool
    kind: str  # "a", "c" or "b"
    major: int | None  # None: any
    minor: int | None
    access: str  # of r, w, m


class Resources(NamedTuple):
    """Bytes, microseconds, counts; -1: no limit; None: as the cgroup's parent has it. Without device rules in the
    configuration `devices` are docker's default ones: to allow all takes a rule that says so."""

    memory_limit: int | None
    memory_swap: int | None  # memory and swap together
    memory_reservation: int | None
    cpu_shares: int | None
    cpu_quota: int | None
    cpu_period: int | None
    cpus: str | None
    mems: str | None
    pids_limit: int | None
    devices: tuple[DeviceRule, ...]
    unified: tuple[tuple[str, str], ...]


NONE = Resources(None, None, None, None, None, None, None, None, None, (), ())


def read(reader: Reader) -> Resources:
    """linux.resources. ConfigError names the first thing that is wrong."""
    memory, cpu, pids = reader.object("memory"), reader.object("cpu"), reader.object("pids")
    rules = reader.objects("devices") or [Reader(rule, "devices") for rule in defaults.DEVICE_RULES]
    found = Resources(
        memory_limit=memory.number("limit", -1),
        memory_swap=memory.number("swap", -1),
        memory_reservation=memory.number("reservation", -1),
        cpu_shares=cpu.number("shares", 2, 262144),
        cpu_quota=cpu.number("quota", -1),
        cpu_period=cpu.number("period", 1000, 1_000_000),
        cpus=cpu.text("cpus") or None,
        mems=cpu.text("mems") or None,
        pids_limit=pids.number("limit", -1),
        devices=tuple(_device_rule(rule) for rule in rules),
        unified=reader.pairs("unified"),
    )
    if found.cpu_quota is not None and 0 <= found.cpu_quota < 1000:
        cpu.fail("quota", f"{found.cpu_quota} microseconds are less than the kernel's least, 1000")
    for part in (memory, cpu, pids, reader):
        part.end()
    return found


def _device_rule(reader: Reader) -> DeviceRule:
    rule = DeviceRule(
        allow=reader.flag("allow"),
        kind=reader.text("type") or "a",
        major=_any(reader.number("major", -1, 4095)),
        minor=_any(reader.number("minor", -1, 2**20 - 1)),
        access=reader.text("access") or "rwm",
    )
    if rule.kind not in ("a", "c", "b"):
        reader.fail("type", f"{rule.kind!r} is not a, c or b")
    if not set(rule.access) <= set("rwm"):
        reader.fail("access", f"{rule.access!r} is not made of r, w and m")
    reader.end()
    return rule


def _any(value: int | None) -> int | None:
    return None if value == -1 else value
