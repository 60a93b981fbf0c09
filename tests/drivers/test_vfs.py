"""Full copies as a driver."""

from tests.contracts.snapshotter import SnapshotterContract


class TestVfs(SnapshotterContract):
    driver_name = "vfs"
    depth = 32
