"""What a thin pool and its devices say of themselves (Documentation/admin-guide/device-mapper/thin-provisioning.rst).

Pure functions of text, with the kernel's names for its words.
"""

from __future__ import annotations

from typing import NamedTuple

from drivers.errors import Unavailable


class PoolStatus(NamedTuple):
    """`metadata` are blocks of 4 KiB, `data` blocks of the pool's own size; free metadata is without the reserve that
    the kernel keeps to be able to delete (dm-thin-metadata.c, metadata_reserve).

    `mode` is "rw", "ro" (metadata is full, or an operation on it failed) or "out_of_data_space". `failed` pools answer
    nothing else, and all the other fields are then 0.
    """

    transaction_id: int
    used_metadata: int
    total_metadata: int
    used_data: int
    total_data: int
    mode: str
    needs_check: bool
    failed: bool = False

    @property
    def free_data_percent(self) -> float:
        return _free_percent(self.used_data, self.total_data)

    @property
    def free_metadata_percent(self) -> float:
        return _free_percent(self.used_metadata, self.total_metadata)


def parse_pool(text: str) -> PoolStatus:
    """Raises Unavailable for text that no kernel gives."""
    words = text.split()
    if words[:1] in (["Fail"], ["Error"]):
        return PoolStatus(0, 0, 0, 0, 0, "ro", words[0] == "Fail", failed=True)
    try:
        transaction_id, metadata, data = words[:3]
        used_metadata, total_metadata = map(int, metadata.split("/"))
        used_data, total_data = map(int, data.split("/"))
        # words[3] is the held root; after the mode come the discards, what is done when the pool is full, needs_check
        # (or "-"), and the low water mark.
        mode = words[4]
        return PoolStatus(
            int(transaction_id), used_metadata, total_metadata, used_data, total_data, mode, "needs_check" in words[5:]
        )
    except (ValueError, IndexError):
        raise Unavailable(f"the kernel describes a thin pool as {text!r}, which is not understood") from None


def parse_thin(text: str) -> int | None:
    """The mapped sectors of an active thin device: each is its own or shared with others. None if the pool failed."""
    words = text.split()
    if words[:1] in (["Fail"], ["Error"]):
        return None
    try:
        return int(words[0])
    except (ValueError, IndexError):
        raise Unavailable(f"the kernel describes a thin device as {text!r}, which is not understood") from None


def _free_percent(used: int, total: int) -> float:
    return 100 * (total - used) / total if total else 0.0
