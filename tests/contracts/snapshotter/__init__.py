"""What every storage driver must do, whatever it is made of.

A driver's test module is one class:

    class TestOverlay2(SnapshotterContract):
        driver_name = "overlay2"

The cases follow containerd's snapshotter suite (core/snapshots/testsuite) and containers/storage's graphtest, and add
the seven that containerd lists as not written yet. Trees are written and read through real mounts.
"""

from tests.contracts.snapshotter.content import Content
from tests.contracts.snapshotter.graph import Graph
from tests.contracts.snapshotter.sharing import Sharing
from tests.contracts.snapshotter.stability import Stability


class SnapshotterContract(Graph, Content, Stability, Sharing):
    """Everything; see Words for what a driver's class can say of itself."""
