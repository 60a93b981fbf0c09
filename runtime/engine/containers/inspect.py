"""What is known of a container, under the names that docker's API has for it (GET /containers/ID/json). What this
runtime does not have is left out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from runtime.engine.containers import names
from runtime.engine.containers.container import Config, Container
from runtime.engine.state import State, Status

_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time
_UNITS = "kmgtpe"


def inspect(found: Container) -> dict[str, Any]:
    """NoSuchContainer when it is removed meanwhile."""
    config, state = found.config, found.state()
    return {
        "Id": config.id,
        "Created": _moment(config.created),
        "Path": config.command[0],
        "Args": list(config.command[1:]),
        "State": _state(state),
        "Image": config.image_id,
        "LogPath": found.log,
        "Name": f"/{config.name}",
        "RestartCount": 0,
        "Driver": config.driver,
        "Platform": "linux",
        "HostConfig": _host_config(config),
        "GraphDriver": {"Name": config.driver, "Data": {"Snapshot": config.id, "Parent": config.parent}},
        "Mounts": [_mount(mount) for mount in _volumes(config)],
        "Config": _config(config),
        "NetworkSettings": _network(config, state),
    }


def _state(state: State) -> dict[str, Any]:
    return {
        "Status": state.status.value,
        "Running": state.status is Status.RUNNING,
        "Paused": False,
        "Restarting": False,
        "OOMKilled": state.oom_killed,
        "Dead": state.status is Status.DEAD,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": _moment(state.started),
        "FinishedAt": _moment(state.finished),
    }


def _config(config: Config) -> dict[str, Any]:
    """What it was made with. An option that was not given is the image's."""
    process, given = config.spec["process"], config.command[len(config.entrypoint) :]
    given_to_all = {f"HOSTNAME={config.spec['hostname']}", *(["TERM=xterm"] if config.terminal else [])}
    shown = {
        "Hostname": config.spec["hostname"],
        "User": config.user,
        "Tty": config.terminal,
        "OpenStdin": config.stdin,
        "Env": [entry for entry in process["env"] if entry not in given_to_all],
        "Cmd": list(given) or None,
        "Image": config.image,
        "WorkingDir": process["cwd"],
        "Entrypoint": list(config.entrypoint) or None,
        "Labels": config.declared.get("Labels", {}),
        "Volumes": config.declared.get("Volumes"),
        "StopSignal": names.signal_name(config.stop_signal),
    }
    return shown | {key: config.declared[key] for key in ("ExposedPorts", "Healthcheck") if key in config.declared}


def _host_config(config: Config) -> dict[str, Any]:
    linux = config.spec["linux"]
    limits = linux.get("resources") or {}
    memory, cpu = limits.get("memory", {}), limits.get("cpu", {})
    quota, period = cpu.get("quota", 0), cpu.get("period", 0)
    return {
        "Binds": [_bind(mount) for mount in _volumes(config)] or None,
        "LogConfig": {"Type": "json-file", "Config": {}},
        "NetworkMode": config.network,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": config.remove,
        "CgroupnsMode": "private",
        "IpcMode": "private",
        "Privileged": False,
        "ReadonlyRootfs": config.spec["root"]["readonly"],
        "StorageOpt": {"size": str(config.quota)} if config.quota else None,
        "ShmSize": _shm_size(config.spec["mounts"]),
        "Memory": memory.get("limit", 0),
        "MemorySwap": memory.get("swap", 0),
        "NanoCpus": quota * 10**9 // period if period else 0,
        "CpuQuota": 0,  # of --cpu-quota, which this runtime does not have
        "CpuPeriod": 0,
        "PidsLimit": limits.get("pids", {}).get("limit"),
        "MaskedPaths": linux["maskedPaths"],
        "ReadonlyPaths": linux["readonlyPaths"],
    }


def _volumes(config: Config) -> list[dict[str, Any]]:
    """What the user has mounted, and not what every container has."""
    return [mount for mount in config.spec["mounts"] if mount["type"] == "bind"]


def _mount(mount: dict[str, Any]) -> dict[str, Any]:
    writable = "ro" not in mount["options"]
    return {
        "Type": "bind",
        "Source": mount["source"],
        "Destination": mount["destination"],
        "Mode": "" if writable else "ro",
        "RW": writable,
        "Propagation": "rprivate",
    }


def _bind(mount: dict[str, Any]) -> str:
    return f"{mount['source']}:{mount['destination']}{':ro' if 'ro' in mount['options'] else ''}"


def _shm_size(mounts: list[dict[str, Any]]) -> int:
    """Bytes of the /dev/shm that is the container's own, 0 where it is the user's."""
    for mount in mounts:
        if mount["destination"] == "/dev/shm" and mount["type"] == "tmpfs":
            sizes = [option.removeprefix("size=") for option in mount["options"] if option.startswith("size=")]
            return _bytes(sizes[-1]) if sizes else 0
    return 0


def _bytes(text: str) -> int:
    """A size as the kernel takes it (memparse(), lib/cmdline.c): 65536k."""
    unit = _UNITS.find(text[-1].lower()) + 1
    return int(text.rstrip(text[-1]) if unit else text) << 10 * unit


def _network(config: Config, state: State) -> dict[str, Any]:
    """Of one that runs; the address of one that has ended may be another's."""
    running = state.status is Status.RUNNING
    address, _, prefix = state.address.partition("/") if running else ("", "", "")
    endpoint = {
        "MacAddress": state.mac if running else "",
        "Gateway": state.gateway if running else "",
        "IPAddress": address,
        "IPPrefixLen": int(prefix or 0),
    }
    return {"Ports": {}, **endpoint, "Networks": {config.network: endpoint}}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z") if seconds else _NEVER
