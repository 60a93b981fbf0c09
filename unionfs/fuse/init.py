"""INIT: what the kernel offers and what the server wishes -> what both will do. One pure function.

fs/fuse/inode.c, process_init_reply, says what the kernel makes of the answer.
"""

from __future__ import annotations

from typing import NamedTuple

from unionfs.fuse import abi

# What Linux 5.4 speaks. Nothing here is made for the structures of an older ABI.
OLDEST_MINOR = 31

_PAGE = 4096
_U16 = 0xFFFF
# FUSE_DEFAULT_MAX_PAGES_PER_REQ: the longest WRITE, in pages, where FUSE_MAX_PAGES is not agreed on.
_DEFAULT_MAX_PAGES = 32
# include/linux/fs/super_types.h; with more, the kernel drops passthrough and says nothing.
_FILESYSTEM_MAX_STACK_DEPTH = 2

_constants = list(vars(abi))
FLAG_NAMES: dict[int, str] = {
    getattr(abi, name): name
    for name in _constants[_constants.index("FUSE_ASYNC_READ") : _constants.index("FUSE_REQUEST_TIMEOUT") + 1]
}

# Flags whose message shapes or duties nothing here implements. Wishing for one is a mistake in the program.
_NOT_SPOKEN = abi.FUSE_SETXATTR_EXT | abi.FUSE_MAP_ALIGNMENT | abi.FUSE_OVER_IO_URING | abi.FUSE_INIT_RESERVED


class Wish(NamedTuple):
    """What a server would have. `flags` has 64 bits; sizes are bytes; `time_gran` is nanoseconds.

    `max_stack_depth` is for FUSE_PASSTHROUGH, else 0. With 1, no backing file may lie on a stacked file system; with 2
    one may lie on an overlayfs, but then no overlayfs can have this mount as a layer.
    """

    flags: int
    max_write: int
    max_background: int
    congestion_threshold: int
    max_readahead: int
    max_stack_depth: int = 0
    time_gran: int = 1


class Agreement(NamedTuple):
    """What was agreed on. `reply` is for reply.init; `missing` names the flags wished for that the kernel lacks.

    `again`: the kernel speaks a later major version. It must be sent `reply`, and then sends INIT once more.
    """

    reply: tuple[int, ...]
    minor: int
    flags: int
    max_write: int
    passthrough: bool
    missing: tuple[str, ...]
    again: bool = False


class Refused(Exception):
    """This kernel cannot be served; the text says why, as a sentence."""


def negotiate(fields: tuple[int, ...], wish: Wish) -> Agreement:
    """Answer INIT, whose Request.fields these are (major, minor, max_readahead, flags, flags2). Raises Refused.

    ValueError: the wish is not one that can be met on any kernel.
    """
    major, minor, max_readahead, low, high = fields
    if wish.flags & _NOT_SPOKEN or not 0 <= wish.max_stack_depth <= _FILESYSTEM_MAX_STACK_DEPTH:
        raise ValueError(f"{names(wish.flags & _NOT_SPOKEN)} with a stack depth of {wish.max_stack_depth}")
    if major > abi.FUSE_KERNEL_VERSION:
        ours = (abi.FUSE_KERNEL_VERSION, abi.FUSE_KERNEL_MINOR_VERSION, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        return Agreement(ours, abi.FUSE_KERNEL_MINOR_VERSION, 0, 0, False, (), again=True)
    if major < abi.FUSE_KERNEL_VERSION or minor < OLDEST_MINOR:
        raise Refused(
            f"the kernel speaks FUSE {major}.{minor}; "
            f"{abi.FUSE_KERNEL_VERSION}.{OLDEST_MINOR} (Linux 5.4) or later is needed"
        )

    offered = low | high << 32 if low & abi.FUSE_INIT_EXT else low
    flags = offered & wish.flags
    if not wish.max_stack_depth:
        flags &= ~abi.FUSE_PASSTHROUGH
    passthrough = bool(flags & abi.FUSE_PASSTHROUGH)
    if passthrough:
        flags &= ~abi.FUSE_WRITEBACK_CACHE  # with both, the kernel drops passthrough and says nothing
    if flags >> 32:
        flags |= abi.FUSE_INIT_EXT

    max_write = max(wish.max_write, _PAGE)
    max_pages = 0
    if flags & abi.FUSE_MAX_PAGES:
        max_pages = min(-(-max_write // _PAGE), _U16)
    max_write = min(max_write, (max_pages or _DEFAULT_MAX_PAGES) * _PAGE)

    minor = min(minor, abi.FUSE_KERNEL_MINOR_VERSION)
    background = min(wish.max_background, _U16)
    reply = (
        abi.FUSE_KERNEL_VERSION, minor, min(max_readahead, wish.max_readahead), flags & 0xFFFFFFFF,
        background, min(wish.congestion_threshold, background), max_write, wish.time_gran,
        max_pages, 0, flags >> 32, wish.max_stack_depth if passthrough else 0, 0,
    )
    missing = tuple(names(wish.flags & ~offered & ~abi.FUSE_INIT_EXT))
    return Agreement(reply, minor, flags, max_write, passthrough, missing)


def names(flags: int) -> list[str]:
    """The names of the INIT flags in `flags`, lowest bit first; a number for a bit that has none."""
    bits = [1 << bit for bit in range(flags.bit_length()) if flags >> bit & 1]
    return [FLAG_NAMES.get(bit, f"{bit:#x}") for bit in bits]
