"""Our own union as a driver."""

from collections.abc import Iterator
from contextlib import contextmanager

from drivers.api import Snapshotter
from tests.contracts.snapshotter import SnapshotterContract


class TestFuseAufs(SnapshotterContract):
    driver_name = "fuse-aufs"

    @contextmanager
    def plain_writing(self, driver: Snapshotter, name: str, parent: str) -> Iterator[str]:
        """A branch is the layer, so what only adds can be written to it directly: no server for each of 128 layers."""
        [mount] = driver.prepare(f"writing-{name}", parent)
        yield mount.source if mount.type == "bind" else mount.options[0].removeprefix("br=").split("=rw", 1)[0]
        driver.commit(name, f"writing-{name}")
