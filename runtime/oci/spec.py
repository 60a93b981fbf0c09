"""The OCI configuration (config.json) that this runtime honours, read once into immutable values.

Names and shapes are the runtime-spec's (config.md, config-linux.md). A key that would change how closed or how
limited the container is, and that is not honoured here, is refused and never skipped. Every refusal is a ConfigError
of one line that begins with the place, as in `process.user.uid: …`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from typing import Any, NamedTuple, NoReturn

from runtime.errors import ConfigError
from runtime.oci import caps, defaults

NAMESPACE_KINDS = ("mount", "pid", "network", "uts", "ipc", "cgroup")

_IGNORED = {"ociVersion", "annotations"}
_SYSCTL_OWNERS = (
    (re.compile(r"net\."), "network"),
    (re.compile(r"fs\.mqueue\."), "ipc"),
    (re.compile(r"kernel\.(msgmax|msgmnb|msgmni|sem|shmall|shmmax|shmmni|shm_rmid_forced)\Z"), "ipc"),
)


class Mount(NamedTuple):
    destination: str
    type: str  # "bind" or a file system's name; "cgroup" means whatever this host has
    source: str
    options: tuple[str, ...]


class Capabilities(NamedTuple):
    """Bit masks, bit n being capability n."""

    bounding: int
    permitted: int
    effective: int
    inheritable: int
    ambient: int


class Rlimit(NamedTuple):
    name: str  # RLIMIT_NOFILE
    soft: int
    hard: int


class Process(NamedTuple):
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    terminal: bool
    console_size: tuple[int, int] | None  # height, width in cells
    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    umask: int
    capabilities: Capabilities
    no_new_privileges: bool
    oom_score_adj: int | None
    rlimits: tuple[Rlimit, ...]


class Device(NamedTuple):
    path: str
    kind: str  # "c", "b" or "p"
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


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


class Spec(NamedTuple):
    rootfs: str
    readonly: bool
    mounts: tuple[Mount, ...]
    process: Process
    hostname: str | None
    domainname: str | None
    namespaces: dict[str, str | None]  # kind -> path to join, or None for a new one; absent: the host's
    cgroups_path: str | None
    resources: Resources
    devices: tuple[Device, ...]
    sysctl: tuple[tuple[str, str], ...]
    propagation: str  # "private" or "slave", recursive
    masked_paths: tuple[str, ...]
    readonly_paths: tuple[str, ...]


class _Reader:
    """One JSON object of the configuration; what nobody asked for is refused by `end`."""

    def __init__(self, value: Any, place: str) -> None:
        self.place = place
        if not isinstance(value, dict):
            raise ConfigError(f"{place or 'config'}: expected an object, not {value!r}")
        self._left = dict(value)

    def fail(self, key: str, text: str) -> NoReturn:
        raise ConfigError(f"{self.name(key)}: {text}")

    def name(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def _take(self, key: str, types: type | tuple[type, ...], words: str, default: Any) -> Any:
        value = self._left.pop(key, None)
        if value is None:
            return default
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            self.fail(key, f"expected {words}, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        value: str | None = self._take(key, str, "a string", default)
        if value is not None and "\0" in value:
            self.fail(key, "a zero byte is not allowed here")
        return value

    def path(self, key: str) -> str:
        """An absolute path, normalised without looking at the file system."""
        value = self.text(key)
        if not value:
            self.fail(key, "a path is needed")
        if not value.startswith("/"):
            self.fail(key, f"{value!r} is not an absolute path")
        return "/" + posixpath.normpath(value).lstrip("/")

    def flag(self, key: str) -> bool:
        return bool(self._take(key, bool, "true or false", False))

    def number(self, key: str, least: int, most: int = 2**63 - 1) -> int | None:
        value: int | None = self._take(key, int, "a whole number", None)
        if value is not None and not least <= value <= most:
            self.fail(key, f"{value} is not between {least} and {most}")
        return value

    def ident(self, key: str) -> int:
        return self.number(key, 0, 2**32 - 2) or 0

    def array(self, key: str) -> list[Any]:
        value: list[Any] = self._take(key, (list, tuple), "a list", [])
        return list(value)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.array(key)
        for value in values:
            if not isinstance(value, str) or "\0" in value:
                self.fail(key, f"{value!r} is not a string that a process can be given")
        return tuple(values)

    def object(self, key: str) -> _Reader:
        return _Reader(self._take(key, dict, "an object", {}), self.name(key))

    def objects(self, key: str) -> list[_Reader]:
        return [_Reader(value, f"{self.name(key)}[{n}]") for n, value in enumerate(self.array(key))]

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        table = self._take(key, dict, "an object", {})
        for name, value in table.items():
            if not isinstance(name, str) or not isinstance(value, str):
                self.fail(key, f"{name!r} must have a string, not {value!r}")
        return tuple(table.items())

    def end(self, ignored: Collection[str] = ()) -> None:
        for key, value in self._left.items():
            if key not in ignored and value not in (None, "", [], {}, False):
                self.fail(key, "this runtime does not honour it, and will not run a container as if it did")


def parse(config: dict[str, Any]) -> Spec:
    """The whole configuration. ConfigError names the first thing that is wrong."""
    top = _Reader(config, "")
    root = top.object("root")
    rootfs, readonly = root.path("path"), root.flag("readonly")
    root.end()
    linux = top.object("linux")
    namespaces = _namespaces(linux)
    spec = Spec(
        rootfs=rootfs,
        readonly=readonly,
        mounts=tuple(_mount(reader) for reader in top.objects("mounts")),
        process=_process(top.object("process")),
        hostname=top.text("hostname"),
        domainname=top.text("domainname"),
        namespaces=namespaces,
        cgroups_path=_cgroups_path(linux),
        resources=_resources(linux.object("resources")),
        devices=tuple(_device(reader) for reader in linux.objects("devices")),
        sysctl=_sysctl(linux, namespaces),
        propagation=_propagation(linux),
        masked_paths=linux.texts("maskedPaths"),
        readonly_paths=linux.texts("readonlyPaths"),
    )
    linux.end()
    top.end(_IGNORED)
    _check_together(spec)
    return spec


def parse_process(config: dict[str, Any]) -> Process:
    """A process object alone, for exec."""
    return _process(_Reader(config, "process"))


def cgroups_path(config: dict[str, Any]) -> str | None:
    """linux.cgroupsPath of a configuration, of which nothing else is looked at."""
    linux = config.get("linux")
    return _cgroups_path(_Reader(linux if isinstance(linux, dict) else {}, "linux"))


def _check_together(spec: Spec) -> None:
    own = spec.namespaces
    if spec.hostname and "uts" not in own:
        raise ConfigError("hostname: it would be the host's, because linux.namespaces has no uts")
    if spec.domainname and "uts" not in own:
        raise ConfigError("domainname: it would be the host's, because linux.namespaces has no uts")
    if any(mount.type == "cgroup" for mount in spec.mounts) and "cgroup" not in own:
        raise ConfigError("mounts: a mount of type cgroup needs a cgroup namespace")
    if spec.cgroups_path is None and spec.resources._replace(devices=()) != _NO_RESOURCES:
        raise ConfigError("linux.resources: limits need linux.cgroupsPath")
    for path in (*spec.masked_paths, *spec.readonly_paths):
        if not path.startswith("/"):
            raise ConfigError(f"linux.maskedPaths, linux.readonlyPaths: {path!r} is not an absolute path")


def _namespaces(linux: _Reader) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for reader in linux.objects("namespaces"):
        kind = reader.text("type") or ""
        if kind not in NAMESPACE_KINDS:
            reader.fail("type", f"{kind!r} is not one of {', '.join(NAMESPACE_KINDS)}")
        if kind in found:
            reader.fail("type", f"{kind} is there twice")
        found[kind] = reader.text("path") or None
        reader.end()
    if found.get("mount", "absent") is not None:
        linux.fail("namespaces", "a new mount namespace is needed")
    return found


def _mount(reader: _Reader) -> Mount:
    destination = reader.path("destination")
    options = reader.texts("options")
    kind = reader.text("type") or "none"
    source = reader.text("source") or kind
    if "bind" in options or "rbind" in options:
        kind = "bind"
        if not source.startswith("/"):
            reader.fail("source", f"{source!r} is not an absolute path")
    elif kind in ("none", "bind"):
        reader.fail("options", "a mount without a file system type needs bind or rbind")
    if destination == "/":
        reader.fail("destination", "/ is root.path's")
    # A file system of the user's choice where processes look for the kernel's answers would lie to them, and to us.
    if (destination + "/").startswith("/proc/") and (kind != "proc" or destination != "/proc"):
        reader.fail("destination", f"{destination} is inside /proc, where only proc itself may be mounted")
    reader.end()
    return Mount(destination, kind, source, options)


def _process(reader: _Reader) -> Process:
    args = reader.texts("args")
    if not args or not args[0]:
        reader.fail("args", "a command is needed")
    env = reader.texts("env")
    for entry in env:
        if "=" not in entry[1:]:
            reader.fail("env", f"{entry!r} is not NAME=VALUE")
    user = reader.object("user")
    size = reader.object("consoleSize")
    height, width = size.number("height", 0, 65535), size.number("width", 0, 65535)
    size.end()
    process = Process(
        args=args,
        env=env,
        cwd=reader.path("cwd"),
        terminal=reader.flag("terminal"),
        console_size=None if height is None or width is None else (height, width),
        uid=user.ident("uid"),
        gid=user.ident("gid"),
        additional_gids=tuple(_group(user, gid) for gid in user.array("additionalGids")),
        umask=_default(user.number("umask", 0, 0o777), 0o022),
        capabilities=_capabilities(reader.object("capabilities")),
        no_new_privileges=reader.flag("noNewPrivileges"),
        oom_score_adj=reader.number("oomScoreAdj", -1000, 1000),
        rlimits=tuple(_rlimit(limit) for limit in reader.objects("rlimits")),
    )
    user.end()
    reader.end()
    return process


def _default(value: int | None, default: int) -> int:
    return default if value is None else value


def _group(user: _Reader, gid: Any) -> int:
    if not isinstance(gid, int) or isinstance(gid, bool) or not 0 <= gid < 2**32 - 1:
        user.fail("additionalGids", f"{gid!r} is not a group id")
    return gid


def _capabilities(reader: _Reader) -> Capabilities:
    def mask(key: str) -> int:
        try:
            return caps.mask(reader.texts(key))
        except KeyError as unknown:
            reader.fail(key, f"{unknown.args[0]!r} is not a capability")

    found = Capabilities(*(mask(key) for key in Capabilities._fields))
    reader.end()
    return found


def _rlimit(reader: _Reader) -> Rlimit:
    name = reader.text("type") or ""
    if not re.fullmatch(r"RLIMIT_[A-Z]+", name):
        reader.fail("type", f"{name!r} is not the name of a limit such as RLIMIT_NOFILE")
    hard = _default(reader.number("hard", 0, 2**64 - 1), 0)
    soft = _default(reader.number("soft", 0, 2**64 - 1), hard)
    if soft > hard:
        reader.fail("soft", f"{name}: the soft limit {soft} is above the hard limit {hard}")
    reader.end()
    return Rlimit(name, soft, hard)


def _device(reader: _Reader) -> Device:
    kind = reader.text("type") or ""
    if kind == "u":
        kind = "c"
    if kind not in ("c", "b", "p"):
        reader.fail("type", f"{kind!r} is not c, b or p")
    device = Device(
        path=reader.path("path"),
        kind=kind,
        major=reader.number("major", 0, 4095) or 0,
        minor=reader.number("minor", 0, 2**20 - 1) or 0,
        mode=_default(reader.number("fileMode", 0, 0o777), 0o666),
        uid=reader.ident("uid"),
        gid=reader.ident("gid"),
    )
    reader.end()
    return device


def _device_rule(reader: _Reader) -> DeviceRule:
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


def _resources(reader: _Reader) -> Resources:
    memory, cpu, pids = reader.object("memory"), reader.object("cpu"), reader.object("pids")
    rules = reader.objects("devices") or [_Reader(rule, "devices") for rule in defaults.DEVICE_RULES]
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


_NO_RESOURCES = Resources(None, None, None, None, None, None, None, None, None, (), ())


def _cgroups_path(linux: _Reader) -> str | None:
    """Below every controller's mount point; relative paths are taken from there too."""
    value = linux.text("cgroupsPath")
    if not value:
        return None
    parts = [part for part in value.split("/") if part]
    if not parts or any(part in (".", "..") or ":" in part or "\n" in part for part in parts):
        linux.fail("cgroupsPath", f"{value!r} is not the path of a cgroup")
    return "/" + "/".join(parts)


def _sysctl(linux: _Reader, namespaces: dict[str, str | None]) -> tuple[tuple[str, str], ...]:
    pairs = linux.pairs("sysctl")
    for name, _ in pairs:
        owner = next((kind for pattern, kind in _SYSCTL_OWNERS if pattern.match(name)), None)
        if owner is None or "/" in name or ".." in name:
            linux.fail("sysctl", f"{name} is not one that belongs to a namespace")
        if owner not in namespaces:
            linux.fail("sysctl", f"{name} would be the host's, because linux.namespaces has no {owner}")
    return pairs


def _propagation(linux: _Reader) -> str:
    value = linux.text("rootfsPropagation") or "rprivate"
    if value not in ("private", "rprivate", "slave", "rslave"):
        linux.fail("rootfsPropagation", f"{value!r} is not private or slave, as rprivate and rslave")
    return value.removeprefix("r")

