"""`runtime system df`."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.cli import human, ps, tell
from runtime.cli.arguments import Given, Option
from runtime.cli.images import created, names
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError
from runtime.engine.containers.names import SHORT_ID
from runtime.engine.state import Status
from runtime.engine.storage.disk import Disk, measure

SUMMARY = "show what images and containers take on disk"
USAGE = "[OPTIONS]"
INTERSPERSED = True
OPTIONS = (Option("verbose", "v", help="each image and container"),)

_TITLES = ("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE")
_IMAGES = (
    "REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS",
)  # fmt: skip
_CONTAINERS = ("CONTAINER ID", "IMAGE", "COMMAND", "LOCAL VOLUMES", "SIZE", "CREATED", "STATUS", "NAMES")


def main(given: Given, settings: Settings) -> int:
    if given.arguments:
        raise UsageError("it takes no arguments")
    with settings.recovered() as installation:
        disk = measure(installation)
    print(_verbose(disk) if given.flag("verbose") else human.table(_TITLES, _rows(disk)), end="", flush=True)
    tell(disk.away)
    return 0


def _rows(disk: Disk) -> list[tuple[str, ...]]:
    active = [held for held in disk.images if held.containers]
    running = [one for one in disk.containers if one.state.status is Status.RUNNING]
    images, written = disk.size(disk.images), sum(one.size for one in disk.containers)
    rows = [
        ("Images", len(disk.images), len(active), images, images - disk.size(active)),
        ("Containers", len(disk.containers), len(running), written, written - sum(one.size for one in running)),
        ("Local Volumes", 0, 0, 0, 0),
    ]
    if disk.incoming:
        rows.append(("Broken Pulls", 0, 0, disk.incoming, disk.incoming))
    if disk.ownerless:
        lost = sum(one.size for one in disk.ownerless)
        rows.append(("Lost Snapshots", len(disk.ownerless), 0, lost, lost))
    return [
        (kind, str(total), str(used), human.size(size), _share(free, size)) for kind, total, used, size, free in rows
    ]


def _share(part: int, whole: int) -> str:
    return f"{human.size(part)} ({100 * part // whole}%)" if whole else human.size(part)


def _verbose(disk: Disk) -> str:
    images: list[Sequence[str]] = []
    for held in disk.images:
        size, unique = disk.size([held]), disk.unique(held)
        sizes = (human.size(size), human.size(size - unique), human.size(unique), str(held.containers))
        images += [
            (repository, tag, held.image.id[7 : 7 + SHORT_ID], created(held.image), *sizes)
            for repository, tag, _ in names(held.image)
        ]
    containers = []
    for one in disk.containers:
        identity, image, command, made, status, name = ps.row(one.container, one.state, full=False)
        containers.append((identity, image, command, "0", human.size(one.size), made, status, name))
    return (
        f"Images space usage:\n\n{human.table(_IMAGES, images)}\n"
        f"Containers space usage:\n\n{human.table(_CONTAINERS, containers)}\n"
        f"Local Volumes space usage:\n\n{human.table(('VOLUME NAME', 'LINKS', 'SIZE'), [])}"
    )
