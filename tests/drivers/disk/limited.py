"""File systems with project quotas; where the kernel has none the test is skipped."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.disk.loop import attached
from tests.mounting import mounted

MIB = 1 << 20

MAKERS = {
    "ext4": ("mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota,nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-K"),
}


@contextmanager
def disk(kind: str, image: Path, *options: str) -> Iterator[Path]:
    with open(image, "wb") as file:
        file.truncate(400 * MIB)
    try:
        subprocess.run([*MAKERS[kind], image], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip(f"{MAKERS[kind][0]} is not installed")
    try:
        with attached(str(image)) as device, mounted([Mount(kind, device, options)]) as path:
            yield Path(path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip(f"this kernel has no project quotas on {kind}: {error.strerror}")
