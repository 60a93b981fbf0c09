"""A container's file system for those who look at it from outside: the running container's own mount of it, and what
is not its own.

While a container runs, what it has written is read through its own mount: another view of the same layer, put together
beside it, would open by name what the container has exchanged for something else meanwhile. Its task hands out a mount
that was made before anything of the container ran. To enter the container's mount namespace instead, and copy what is
mounted at its root, would ask the container: one with CAP_SYS_ADMIN can mount anything there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from runtime.engine.containers import leaving
from runtime.engine.containers.container import Container
from runtime.engine.watch import connect
from runtime.errors import StateError
from unionfs.linux import consts, files

_PATIENCE = 30.0  # seconds for a task to answer; one that is stopped, or starved, does not


@contextmanager
def live(container: Container) -> Iterator[int | None]:
    """A descriptor of the root directory of a container that runs, as the container itself has it, without what is
    mounted in it; None of one that does not.

    Nothing can be written through it, nor a device or a program opened. It stays good when the container ends.
    StateError when the container's task does not answer, or its file system, which a server may have.
    """
    watch = connect(container)
    if watch is None:
        yield None
        return
    with watch:
        try:
            found = watch.look(_PATIENCE)
        except TimeoutError:
            raise StateError(f"the process that keeps {container.config.name} does not answer") from None
    if found is None:
        yield None
        return
    with leaving.certainly():
        root = leaving.within(_PATIENCE, f"the file system of {container.config.name}", partial(_open_root, found))
        try:
            yield root
        finally:
            os.close(root)


def _open_root(look: int) -> int:
    """Its root directory, for the look at it. What the kernel knows by itself would tell nothing of a server."""
    try:
        os.fstatvfs(look)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=look)
    finally:
        os.close(look)


def mount_points(container: Container) -> list[bytes]:
    """Where something is mounted in the container. What had to be made there for it is nothing that the container has
    changed; docker keeps it in a layer below the container's. NoSuchContainer when it is removed meanwhile."""
    said = [mount["destination"] for mount in container.config.spec["mounts"]]
    return [os.fsencode(os.path.normpath(place).strip("/")) for place in (*said, *container.state().places)]


def led_elsewhere(look: int, places: Iterable[str]) -> Iterator[str]:
    """Where those of `places` are that links lead elsewhere, in the root that `look` is of (oci/newroot.py, look)."""
    for place in places:
        try:
            resolve = consts.RESOLVE_IN_ROOT | consts.RESOLVE_NO_MAGICLINKS
            fd = files.openat2(look, os.fsencode(place), os.O_PATH, resolve=resolve)
        except OSError:
            continue  # it is in something that is mounted
        try:
            found = os.fsdecode(os.readlink(files.fd_path(fd)))
        finally:
            os.close(fd)
        if found != os.path.normpath(place):
            yield found
