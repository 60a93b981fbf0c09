"""The OCI configuration (config.json) that this runtime honours, read once into immutable values.

Names and shapes are the runtime-spec's (config.md, config-linux.md). A key that would change how closed or how
limited the container is, and that is not honoured here, is refused and never skipped. Every refusal is a ConfigError
of one line that begins with the place, as in `process.user.uid: …`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from runtime.errors import ConfigError
from runtime.oci import caps, resources
from runtime.oci.reader import Reader

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


class Spec(NamedTuple):
    rootfs: str
    readonly: bool
    mounts: tuple[Mount, ...]
    process: Process
    hostname: str | None
    domainname: str | None
    namespaces: dict[str, str | None]  # kind -> path to join, or None for a new one; absent: the host's
    cgroups_path: str | None
    resources: resources.Resources
    devices: tuple[Device, ...]
    sysctl: tuple[tuple[str, str], ...]
    propagation: str  # "private" or "slave", recursive
    masked_paths: tuple[str, ...]
    readonly_paths: tuple[str, ...]


def parse(config: dict[str, Any]) -> Spec:
    """The whole configuration. ConfigError names the first thing that is wrong."""
    top = Reader(config, "")
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
        resources=resources.read(linux.object("resources")),
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
    return _process(Reader(config, "process"))


def cgroups_path(config: dict[str, Any]) -> str | None:
    """linux.cgroupsPath of a configuration, of which nothing else is looked at."""
    linux = config.get("linux")
    return _cgroups_path(Reader(linux if isinstance(linux, dict) else {}, "linux"))


def _check_together(spec: Spec) -> None:
    own = spec.namespaces
    if spec.hostname and "uts" not in own:
        raise ConfigError("hostname: it would be the host's, because linux.namespaces has no uts")
    if spec.domainname and "uts" not in own:
        raise ConfigError("domainname: it would be the host's, because linux.namespaces has no uts")
    if any(mount.type == "cgroup" for mount in spec.mounts) and "cgroup" not in own:
        raise ConfigError("mounts: a mount of type cgroup needs a cgroup namespace")
    if spec.cgroups_path is None and spec.resources._replace(devices=()) != resources.NONE:
        raise ConfigError("linux.resources: limits need linux.cgroupsPath")
    for path in (*spec.masked_paths, *spec.readonly_paths):
        if not path.startswith("/"):
            raise ConfigError(f"linux.maskedPaths, linux.readonlyPaths: {path!r} is not an absolute path")


def _namespaces(linux: Reader) -> dict[str, str | None]:
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


def _mount(reader: Reader) -> Mount:
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


def _process(reader: Reader) -> Process:
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


def _group(user: Reader, gid: Any) -> int:
    if not isinstance(gid, int) or isinstance(gid, bool) or not 0 <= gid < 2**32 - 1:
        user.fail("additionalGids", f"{gid!r} is not a group id")
    return gid


def _capabilities(reader: Reader) -> Capabilities:
    def mask(key: str) -> int:
        try:
            return caps.mask(reader.texts(key))
        except KeyError as unknown:
            reader.fail(key, f"{unknown.args[0]!r} is not a capability")

    found = Capabilities(*(mask(key) for key in Capabilities._fields))
    reader.end()
    return found


def _rlimit(reader: Reader) -> Rlimit:
    name = reader.text("type") or ""
    if not re.fullmatch(r"RLIMIT_[A-Z]+", name):
        reader.fail("type", f"{name!r} is not the name of a limit such as RLIMIT_NOFILE")
    hard = _default(reader.number("hard", 0, 2**64 - 1), 0)
    soft = _default(reader.number("soft", 0, 2**64 - 1), hard)
    if soft > hard:
        reader.fail("soft", f"{name}: the soft limit {soft} is above the hard limit {hard}")
    reader.end()
    return Rlimit(name, soft, hard)


def _device(reader: Reader) -> Device:
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


def _cgroups_path(linux: Reader) -> str | None:
    """Below every controller's mount point; relative paths are taken from there too."""
    value = linux.text("cgroupsPath")
    if not value:
        return None
    parts = [part for part in value.split("/") if part]
    if not parts or any(part in (".", "..") or ":" in part or "\n" in part for part in parts):
        linux.fail("cgroupsPath", f"{value!r} is not the path of a cgroup")
    return "/" + "/".join(parts)


def _sysctl(linux: Reader, namespaces: dict[str, str | None]) -> tuple[tuple[str, str], ...]:
    pairs = linux.pairs("sysctl")
    for name, _ in pairs:
        owner = next((kind for pattern, kind in _SYSCTL_OWNERS if pattern.match(name)), None)
        if owner is None or "/" in name or ".." in name:
            linux.fail("sysctl", f"{name} is not one that belongs to a namespace")
        if owner not in namespaces:
            linux.fail("sysctl", f"{name} would be the host's, because linux.namespaces has no {owner}")
    return pairs


def _propagation(linux: Reader) -> str:
    value = linux.text("rootfsPropagation") or "rprivate"
    if value not in ("private", "rprivate", "slave", "rslave"):
        linux.fail("rootfsPropagation", f"{value!r} is not private or slave, as rprivate and rslave")
    return value.removeprefix("r")

