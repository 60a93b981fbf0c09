"""Places for the driver btrfs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.disk import loop
from tests.drivers.btrfs.looking import GIB, devices
from tests.mounting import mounted


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A btrfs that is somebody else's."""
    image = tmp_path / "disk"
    with open(image, "wb") as file:
        file.truncate(2 * GIB)
    subprocess.run(["mkfs.btrfs", "--quiet", "--nodiscard", image], check=True, capture_output=True)
    with loop.attached(str(image)) as device, mounted([Mount("btrfs", device)]) as path:
        yield Path(path)


@pytest.fixture
def root() -> Iterator[str]:
    """A root that needs a file, not made yet; what a test leaves mounted there is unmounted."""
    with mounted([Mount("tmpfs", "tmpfs", ("size=400m",))]) as memory:
        root = f"{memory}/btrfs"
        yield root
        for device in devices(root):
            loop.detach(f"/dev/{device}")


@pytest.fixture(params=["file", "disk"])
def either(request: pytest.FixtureRequest) -> str:
    fixture = request.getfixturevalue("root" if request.param == "file" else "disk")
    return fixture if request.param == "file" else str(fixture / "btrfs")
