"""What is known of a container or an image, under the names that docker's API has for it (GET /containers/ID/json,
/images/NAME/json). What this runtime does not have is left out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from runtime.engine.containers import Container
from runtime.engine.state import Status
from runtime.images import document
from runtime.images.image import Image
from runtime.images.store import ImageStore

_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time


def image(store: ImageStore, found: Image) -> dict[str, Any]:
    """NoSuchImage when it is removed meanwhile."""
    configuration = document.parse_configuration(store.read(found.id))
    told = configuration.history[-1] if configuration.history else {}
    return {
        "Id": found.id,
        "RepoTags": list(found.tags),
        "RepoDigests": list(found.digests),
        "Parent": "",
        "Comment": configuration.document.get("comment") or told.get("comment") or "",
        "Created": found.created,
        "Author": configuration.document.get("author") or "",
        "Config": found.config,
        "Architecture": configuration.platform.architecture,
        "Variant": configuration.platform.variant,
        "Os": configuration.platform.os,
        "Size": found.size,
        "RootFS": {"Type": "layers", "Layers": list(found.layers)},
        "Descriptor": document.Descriptor(found.media_type, found.manifest, len(store.read(found.manifest))).encoded(),
    }


def container(found: Container) -> dict[str, Any]:
    """NoSuchContainer when it is removed meanwhile."""
    config, state = found.config, found.state()
    process, linux = config.spec["process"], config.spec["linux"]
    address, _, prefix = state.address.partition("/")
    mounts = [mount for mount in config.spec["mounts"] if mount.get("type") == "bind"]
    limits = linux.get("resources") or {}
    return {
        "Id": config.id,
        "Created": _moment(config.created),
        "Path": config.command[0],
        "Args": list(config.command[1:]),
        "State": {
            "Status": state.status.value,
            "Running": state.status is Status.RUNNING,
            "Pid": state.pid,
            "ExitCode": state.exit_code,
            "Error": state.error,
            "StartedAt": _moment(state.started),
            "FinishedAt": _moment(state.finished),
        },
        "Image": config.image_id,
        "LogPath": found.log,
        "Name": f"/{config.name}",
        "Driver": config.driver,
        "HostConfig": {
            "NetworkMode": config.network,
            "AutoRemove": config.remove,
            "Memory": limits.get("memory", {}).get("limit", 0),
            "CpuQuota": limits.get("cpu", {}).get("quota", 0),
            "PidsLimit": limits.get("pids", {}).get("limit", 0),
        },
        "GraphDriver": {"Name": config.driver, "Data": {"Snapshot": config.id, "Parent": config.parent}},
        "Mounts": [
            {
                "Type": "bind",
                "Source": mount["source"],
                "Destination": mount["destination"],
                "RW": "ro" not in mount["options"],
            }
            for mount in mounts
        ],
        "Config": {
            "Hostname": config.spec["hostname"],
            "User": config.user,
            "Tty": config.terminal,
            "OpenStdin": config.stdin,
            "Env": process["env"],
            "Cmd": list(config.command),
            "Image": config.image,
            "WorkingDir": process["cwd"],
            "StopSignal": config.stop_signal,
        },
        "NetworkSettings": {"IPAddress": address, "IPPrefixLen": int(prefix or 0)},
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z") if seconds else _NEVER
