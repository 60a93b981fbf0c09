"""The kernel's overlayfs as a driver."""

from tests.contracts.snapshotter import SnapshotterContract


class TestOverlay2(SnapshotterContract):
    driver_name = "overlay2"
    renames_lower_directories = False
