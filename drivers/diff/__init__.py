"""What a snapshot changed against its parent: listed, written as a layer's archive, and applied to another.

    change     Change, what is listed; Found, what the walk gives
    forms      plain trees, and the two forms in which drivers keep differences
    compare    whether an entry has changed
    walk       two trees side by side
    layer      what the walk finds, as an archive
    snapshots  the trees of a driver's snapshots, opened

Works over any driver's snapshots, in use or not. Differences that a driver keeps in a directory of their own and a
comparison of two trees go through the same walk, and come to the same archive, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import closing

from drivers.api import Snapshotter
from drivers.archive import target
from drivers.archive.extract import Extracted, extract
from drivers.archive.limits import DEFAULT, Limits
from drivers.archive.reader import Source
from drivers.diff import layer, snapshots
from drivers.diff.change import Change
from drivers.diff.walk import differences

__all__ = ["Change", "apply", "changes", "diff_size", "write_diff", "write_tree"]


def changes(
    driver: Snapshotter, key: str, *, mount_points: Collection[bytes] = (), live: int | None = None
) -> list[Change]:
    """What `docker diff` would list for the snapshot `key`, of any kind: sorted by path, the root left out.

    `mount_points` are paths, b"etc/hosts", where something is mounted in a container: empty files and directories that
    are there only for that are left out. `live` is a descriptor of the root of a snapshot that is in use, as it is
    mounted (diff.snapshots.tree). Raises NotFound, InUse, other DriverErrors, OSError.
    """
    with (
        snapshots.compared(driver, key, live) as trees,
        closing(differences(*trees, mount_points=mount_points)) as found,
    ):
        told = [Change(one.kind, b"/" + one.path) for one in found if one.kind != "=" and one.path]
    return sorted(told, key=lambda change: change.path)


def write_diff(
    driver: Snapshotter,
    key: str,
    write: Callable[[bytes], object],
    *,
    mount_points: Collection[bytes] = (),
    live: int | None = None,
) -> int:
    """Give `write` the uncompressed archive of the layer that makes the parent's tree that of `key`; its bytes.

    The same tree on the same parent gives the same bytes, on any driver. Memory does not grow with the files.
    `mount_points` and `live` as for changes(). Raises NotFound, InUse, other DriverErrors, OSError, ArchiveError for a
    path that no archive can have.
    """
    with (
        snapshots.compared(driver, key, live) as trees,
        closing(differences(*trees, mount_points=mount_points)) as found,
    ):
        return layer.write(found, write)


def write_tree(root_fd: int, write: Callable[[bytes], object]) -> int:
    """Give `write` the archive of all that is below the directory `root_fd`, mounts not crossed; its bytes."""
    with closing(differences(root_fd, None)) as found:
        return layer.write(found, write)


def apply(driver: Snapshotter, key: str, stream: Source, *, limits: Limits = DEFAULT) -> Extracted:
    """Apply the uncompressed archive of a layer to the active snapshot `key`, which is not mounted.

    What was applied stays when it fails: the caller then removes the snapshot. Raises ArchiveError, DriverError.
    """
    with target.opened(driver, key) as place:
        return extract(stream, place, limits=limits)


def diff_size(driver: Snapshotter, key: str) -> int:
    """The bytes of the files that write_diff() would write, each once: what apply() gives as the size."""
    with snapshots.compared(driver, key) as trees, closing(differences(*trees)) as found:
        return sum(entry.size for entry, _ in layer.members(found))
