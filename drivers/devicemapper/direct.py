"""Reading and writing a block device past the page cache.

device-mapper reads and writes what a pool lies on past it, and XFS its own blocks; what the cache holds may be older
than what is on the device, or be written back over that later.
"""

from __future__ import annotations

import mmap
import os

FLAGS = os.O_DIRECT | os.O_CLOEXEC
BLOCK = 4096  # what positions and sizes are multiples of, whatever the device's own is


def read(fd: int, position: int, size: int) -> bytes:
    """`size` bytes, or fewer at the device's end. `fd` was opened with FLAGS."""
    with mmap.mmap(-1, size) as aligned:
        return aligned[: os.preadv(fd, [aligned], position)]


def write(fd: int, position: int, content: bytes) -> None:
    """Write all of it, and return when it is on the disk. `fd` was opened with FLAGS."""
    with mmap.mmap(-1, len(content)) as aligned:
        aligned[:] = content
        written = os.pwritev(fd, [aligned], position)
    if written != len(content):
        raise OSError(f"{written} of {len(content)} bytes were written at {position}")
    os.fsync(fd)
