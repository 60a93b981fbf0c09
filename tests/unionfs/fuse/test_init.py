"""Negotiation: which kernels are served, and with what."""

from __future__ import annotations

import pytest

from tests.unionfs.fuse.golden import REQUESTS
from unionfs.fuse import abi, reply
from unionfs.fuse.init import FLAG_NAMES, Agreement, Refused, Wish, names, negotiate

OFFERED = REQUESTS["INIT"].fields  # what Linux 6.18 offers
WISH = Wish(
    abi.FUSE_ATOMIC_O_TRUNC | abi.FUSE_MAX_PAGES | abi.FUSE_PASSTHROUGH | abi.FUSE_DO_READDIRPLUS,
    max_write=1 << 20, max_background=64, congestion_threshold=48, max_readahead=1 << 20, max_stack_depth=1,
)


def told(agreement: Agreement) -> dict[str, int]:
    return dict(zip(abi.FIELDS[abi.INIT_OUT], agreement.reply, strict=True))


def kernel(minor: int = 45, flags: int = -1, *, major: int = 7, max_readahead: int = 1 << 17) -> tuple[int, ...]:
    """INIT of a kernel that offers `flags` (64 bits)."""
    return major, minor, max_readahead, flags & 0xFFFFFFFF, flags >> 32 & 0xFFFFFFFF


def test_linux_6_18() -> None:
    agreed = negotiate(OFFERED, WISH)
    assert (agreed.minor, agreed.max_write, agreed.passthrough, agreed.missing, agreed.again) == (
        45, 1 << 20, True, (), False
    )
    assert agreed.flags == WISH.flags | abi.FUSE_INIT_EXT
    assert told(agreed) == {
        "major": 7, "minor": 45, "max_readahead": 1 << 17, "flags": agreed.flags & 0xFFFFFFFF, "flags2": 1 << 5,
        "max_background": 64, "congestion_threshold": 48, "max_write": 1 << 20, "time_gran": 1, "max_pages": 256,
        "map_alignment": 0, "max_stack_depth": 1, "request_timeout": 0,
    }
    assert len(reply.init(2, agreed.reply)) == 16 + 64


def test_linux_5_4() -> None:
    """7.31, before FUSE_INIT_EXT: the bits of flags2 are what happens to be there."""
    flags = abi.FUSE_ATOMIC_O_TRUNC | abi.FUSE_MAX_PAGES | abi.FUSE_DO_READDIRPLUS | abi.FUSE_PASSTHROUGH
    agreed = negotiate(kernel(31, flags), WISH)
    assert (agreed.minor, agreed.passthrough, agreed.missing) == (31, False, ("FUSE_PASSTHROUGH",))
    assert agreed.flags == flags & ~abi.FUSE_PASSTHROUGH
    assert (told(agreed)["flags2"], told(agreed)["max_stack_depth"]) == (0, 0)


@pytest.mark.parametrize("major, minor", [(7, 30), (7, 0), (6, 45), (1, 1), (0, 0)])
def test_an_older_kernel_is_refused(major: int, minor: int) -> None:
    with pytest.raises(Refused, match=rf"the kernel speaks FUSE {major}\.{minor}; 7\.31 \(Linux 5\.4\) or later"):
        negotiate(kernel(minor, major=major), WISH)


def test_a_later_major_version_is_told_ours_and_asks_again() -> None:
    agreed = negotiate(kernel(0, major=8), WISH)
    assert agreed.again
    assert (told(agreed)["major"], told(agreed)["minor"]) == (7, 45)
    assert not any(value for name, value in told(agreed).items() if name not in ("major", "minor"))


def test_a_later_minor_version_is_spoken_to_as_ours() -> None:
    agreed = negotiate(kernel(99), WISH)
    assert (agreed.minor, told(agreed)["minor"]) == (45, 45)


def test_nothing_is_agreed_on_that_was_not_wished_for_and_offered() -> None:
    for offered in (0, abi.FUSE_MAX_PAGES, abi.FUSE_INIT_EXT | abi.FUSE_PASSTHROUGH, (1 << 63) - 1):
        agreed = negotiate(kernel(45, offered), WISH)
        assert not agreed.flags & ~(offered & (WISH.flags | abi.FUSE_INIT_EXT))
        assert agreed.flags == told(agreed)["flags"] | told(agreed)["flags2"] << 32
        assert agreed.missing == tuple(names(WISH.flags & ~offered))
    assert negotiate(kernel(), Wish(0, 4096, 0, 0, 0)).flags == 0


def test_flags2_counts_only_with_init_ext() -> None:
    agreed = negotiate(kernel(45, abi.FUSE_PASSTHROUGH), WISH)
    assert not agreed.passthrough
    assert "FUSE_PASSTHROUGH" in agreed.missing


def test_passthrough_excludes_the_writeback_cache() -> None:
    wish = WISH._replace(flags=WISH.flags | abi.FUSE_WRITEBACK_CACHE)
    agreed = negotiate(OFFERED, wish)
    assert agreed.passthrough
    assert not agreed.flags & abi.FUSE_WRITEBACK_CACHE
    without = negotiate(kernel(38), wish._replace(max_stack_depth=0))
    assert not without.passthrough
    assert not without.flags & abi.FUSE_PASSTHROUGH
    assert without.flags & abi.FUSE_WRITEBACK_CACHE
    assert told(without)["max_stack_depth"] == 0


@pytest.mark.parametrize(
    "wished, offered, max_write, max_pages",
    [
        (1 << 20, -1, 1 << 20, 256), (1 << 20, ~abi.FUSE_MAX_PAGES, 1 << 17, 0), (1, -1, 4096, 1),
        (4097, -1, 4097, 2), (1 << 16, ~abi.FUSE_MAX_PAGES, 1 << 16, 0), (1 << 30, -1, 65535 * 4096, 65535),
    ],
)
def test_max_write_is_what_the_pages_hold(wished: int, offered: int, max_write: int, max_pages: int) -> None:
    agreed = negotiate(kernel(45, offered), WISH._replace(max_write=wished))
    assert (agreed.max_write, told(agreed)["max_write"], told(agreed)["max_pages"]) == (max_write, max_write, max_pages)


def test_readahead_and_background_stay_within_what_the_fields_and_the_kernel_have() -> None:
    agreed = negotiate(kernel(max_readahead=4096), WISH._replace(max_background=1 << 20, congestion_threshold=1 << 20))
    assert (told(agreed)["max_readahead"], told(agreed)["max_background"]) == (4096, 65535)
    assert told(agreed)["congestion_threshold"] == 65535
    assert told(negotiate(kernel(), WISH._replace(max_background=10)))["congestion_threshold"] == 10
    assert told(negotiate(kernel(), WISH._replace(max_readahead=8192)))["max_readahead"] == 8192


@pytest.mark.parametrize(
    "wish",
    [WISH._replace(flags=flag) for flag in (abi.FUSE_SETXATTR_EXT, abi.FUSE_OVER_IO_URING, abi.FUSE_INIT_RESERVED)]
    + [WISH._replace(max_stack_depth=3)],
)
def test_a_wish_that_this_layer_cannot_keep_is_a_mistake(wish: Wish) -> None:
    with pytest.raises(ValueError, match="stack depth"):
        negotiate(OFFERED, wish)


def test_names_of_flags() -> None:
    assert sorted(FLAG_NAMES) == [1 << bit for bit in range(43)]
    assert names(abi.FUSE_PASSTHROUGH | abi.FUSE_ASYNC_READ | 1 << 60) == [
        "FUSE_ASYNC_READ", "FUSE_PASSTHROUGH", "0x1000000000000000"
    ]
