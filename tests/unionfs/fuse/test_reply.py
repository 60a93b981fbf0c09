"""Answers and notifications, byte by byte.

The bytes are those of a C program that filled the structures of linux/fuse.h with the values used here; those of the
answers that the header of 7.38 does not know are composed by hand.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests.unionfs.fuse.golden import unannotated
from unionfs.fuse import abi, reply
from unionfs.fuse.dirents import DirectoryReply
from unionfs.fuse.wiretext import tx

UNIQUE = 0x0807060504030201
STATUS = SimpleNamespace(
    st_mode=0o100644, st_uid=1000, st_gid=100, st_rdev=0x801, st_size=0x131415, st_blocks=0x1617, st_blksize=4096,
    st_atime_ns=-1_000_000_001, st_mtime_ns=1_000_000_001_000_000_002, st_ctime_ns=1_700_000_000_123_456_789,
)

_ATTR = """
    1211000000000000 1514130000000000 1716000000000000  # ino, size, blocks
    feffffffffffffff 01ca9a3b00000000 00f1536500000000  # atime -2, mtime, ctime
    ffc99a3b 02000000 15cd5b07                          # atimensec, mtimensec, ctimensec
    a4810000 03000000 e8030000 64000000                 # mode, nlink, uid, gid
    01080000 00100000 00000000                          # rdev, blksize, flags
"""
_ENTRY = f"""
    2221000000000000 0000000000000000                   # nodeid, generation
    3231000000000000 3433000000000000 00000000 00000000 # entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec
    {_ATTR}
"""
_OPEN = "4241000000000000 8a000000 07000000             # fh, open_flags, backing_id"


def _directory() -> bytes:
    listing = DirectoryReply(UNIQUE, 4096)
    assert listing.add(b"abc", 0x7172, 0o100644, 0x7374)
    assert listing.add(b"abcdefgh", 0x7576, 0o040755, 0x7778)
    return listing.message()


def _directory_plus() -> bytes:
    listing = DirectoryReply(UNIQUE, 4096)
    assert listing.add_plus(b"abc", 0x2122, 0x1112, 3, STATUS, 0x7374, 0x3132, 0x3334)
    return listing.message()


def _answer(code: str, payload: str) -> bytes:
    body = unannotated(payload)
    return (16 + len(body)).to_bytes(4, "little") + bytes.fromhex(code + "0102030405060708") + body


def _notification(code: int, payload: str) -> bytes:
    body = unannotated(payload)
    return (16 + len(body)).to_bytes(4, "little") + code.to_bytes(4, "little") + bytes(8) + body


ANSWERS: dict[str, tuple[bytes, bytes]] = {
    "error": (reply.error(UNIQUE, 2), _answer("feffffff", "")),
    "ok": (reply.ok(UNIQUE), _answer("00000000", "")),
    "data": (reply.data(UNIQUE, b"abc"), _answer("00000000", "616263")),
    "data of a view": (reply.data(UNIQUE, memoryview(b"abc")), _answer("00000000", "616263")),
    "data_header": (reply.data_header(UNIQUE, 3) + b"abc", _answer("00000000", "616263")),
    "entry": (reply.entry(UNIQUE, 0x2122, 0x1112, 3, STATUS, 0x3132, 0x3334), _answer("00000000", _ENTRY)),
    "no_entry": (
        reply.no_entry(UNIQUE, 0x3132),
        _answer("00000000", "00" * 16 + "3231000000000000" + "00" * 104),
    ),
    "attr": (
        reply.attr(UNIQUE, 0x1112, 3, STATUS, 0x3334),
        _answer("00000000", f"3433000000000000 00000000 00000000  # attr_valid, attr_valid_nsec, -\n{_ATTR}"),
    ),
    "opened": (reply.opened(UNIQUE, 0x4142, 0x8A, 7), _answer("00000000", _OPEN)),
    "created": (
        reply.created(UNIQUE, 0x2122, 0x1112, 3, STATUS, 0x3132, 0x3334, 0x4142, 0x8A, 7),
        _answer("00000000", _ENTRY + _OPEN),
    ),
    "written": (reply.written(UNIQUE, 0x5152), _answer("00000000", "52510000 00000000  # size, -")),
    "copied": (reply.copied(UNIQUE, 0x515253545556), _answer("00000000", "5655545352510000  # bytes_copied")),
    "offset": (reply.offset(UNIQUE, 0x515253545556), _answer("00000000", "5655545352510000  # offset")),
    "xattr_size": (reply.xattr_size(UNIQUE, 0x5152), _answer("00000000", "52510000 00000000  # size, -")),
    "statfs": (
        reply.statfs(UNIQUE, SimpleNamespace(
            f_blocks=1, f_bfree=2, f_bavail=3, f_files=4, f_ffree=5, f_bsize=6, f_namemax=7, f_frsize=8
        )),
        _answer("00000000", """
            0100000000000000 0200000000000000 0300000000000000  # blocks, bfree, bavail
            0400000000000000 0500000000000000                   # files, ffree
            06000000 07000000 08000000 00000000                 # bsize, namelen, frsize, -
            000000000000000000000000000000000000000000000000    # -
        """),
    ),
    "statx": (
        reply.statx(UNIQUE, 0x1112, 3, STATUS, 1_600_000_000_000_000_005, 0x3334, 0x20, 0x30),
        _answer("00000000", """
            3433000000000000 00000000 00000000                  # attr_valid, attr_valid_nsec, flags
            00000000000000000000000000000000                    # -
            ff0f0000 00100000 2000000000000000                  # mask, blksize, attributes
            03000000 e8030000 64000000 a481 0000                # nlink, uid, gid, mode, -
            1211000000000000 1514130000000000 1716000000000000  # ino, size, blocks
            3000000000000000                                    # attributes_mask
            feffffffffffffff ffc99a3b 00000000                  # atime
            00105e5f00000000 05000000 00000000                  # btime
            00f1536500000000 15cd5b07 00000000                  # ctime
            01ca9a3b00000000 02000000 00000000                  # mtime
            08000000 01000000 00000000 00000000                 # rdev_major, rdev_minor, dev_major, dev_minor
        """ + "00" * 112),
    ),
    "ioctl": (
        reply.ioctl(UNIQUE, -1, b"abcd"),
        _answer("00000000", "ffffffff 00000000 00000000 00000000  # result, flags, in_iovs, out_iovs\n61626364"),
    ),
    "init": (
        reply.init(UNIQUE, (7, 45, 0x20000, 0x40000000, 64, 48, 0x100000, 1, 256, 0, 0x20, 1, 0)),
        _answer("00000000", """
            07000000 2d000000 00000200 00000040                 # major, minor, max_readahead, flags
            4000 3000 00001000 01000000                         # background, congestion, max_write, time_gran
            0001 0000 20000000 01000000 0000                    # max_pages, map_alignment, flags2, depth, timeout
            00000000000000000000000000000000000000000000        # -
        """),
    ),
    "READDIR": (
        _directory(),
        _answer("00000000", """
            7271000000000000 7473000000000000 03000000 08000000 # ino, off, namelen, type DT_REG
            6162630000000000                                    # "abc", padding
            7675000000000000 7877000000000000 08000000 04000000 # ino, off, namelen, type DT_DIR
            6162636465666768                                    # "abcdefgh"
        """),
    ),
    "READDIRPLUS": (
        _directory_plus(),
        _answer("00000000", _ENTRY + """
            1211000000000000 7473000000000000 03000000 08000000 # ino, off, namelen, type DT_REG
            6162630000000000                                    # "abc", padding
        """),
    ),
    "notify_inval_inode": (
        reply.notify_inval_inode(0x6162, -1, 0),
        _notification(2, "6261000000000000 ffffffffffffffff 0000000000000000  # ino, off, len"),
    ),
    "notify_inval_entry": (
        reply.notify_inval_entry(0x6162, b"name", abi.FUSE_EXPIRE_ONLY),
        _notification(3, "6261000000000000 04000000 01000000 6e616d6500  # parent, namelen, flags, name"),
    ),
    "notify_store": (
        reply.notify_store(0x6162, 3, 4) + b"data",
        _notification(4, "6261000000000000 0300000000000000 04000000 00000000 64617461  # nodeid, offset, size, data"),
    ),
    "notify_delete": (
        reply.notify_delete(0x6162, 0x6364, b"name"),
        _notification(6, "6261000000000000 6463000000000000 04000000 00000000 6e616d6500  # parent, child, namelen"),
    ),
    "notify_inc_epoch": (reply.notify_inc_epoch(), _notification(8, "")),
    "notify_prune": (
        reply.notify_prune([0x6162, 0x6364]),
        _notification(9, "02000000 00000000 0000000000000000 6261000000000000 6463000000000000  # count, -, nodeids"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_bytes(name: str) -> None:
    ours, golden = ANSWERS[name]
    assert ours.hex() == golden.hex()
    assert abi.OUT_HEADER.unpack_from(ours)[0] == len(ours)


def test_status_of_a_file_fits() -> None:
    """os.stat_result is a Status: what the kernel said of a device number is what it is told."""
    st = os.stat("/dev/null")
    values = dict(zip(abi.FIELDS[abi.ATTR_OUT], abi.ATTR_OUT.unpack_from(reply.attr(1, 5, 1, st, 0), 16), strict=True))
    assert (values["mode"], values["rdev"], values["ino"]) == (st.st_mode, 1 << 8 | 3, 5)
    assert (values["mtime"], values["mtimensec"]) == divmod(st.st_mtime_ns, 10**9)


@pytest.mark.parametrize("major, minor", [(0, 0), (1, 3), (240, 70000), (4095, (1 << 20) - 1), (8, 255), (8, 256)])
def test_device_numbers(major: int, minor: int) -> None:
    """new_encode_dev of include/linux/kdev_t.h, over all that its 12 and 20 bits hold."""
    st = SimpleNamespace(**{**vars(STATUS), "st_rdev": os.makedev(major, minor)})
    values = dict(zip(abi.FIELDS[abi.ATTR_OUT], abi.ATTR_OUT.unpack_from(reply.attr(1, 5, 1, st, 0), 16), strict=True))
    assert values["rdev"] == (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
    stx = abi.STATX_OUT.unpack_from(reply.statx(1, 5, 1, st, None, 0), 16)
    told = dict(zip(abi.FIELDS[abi.STATX_OUT], stx, strict=True))
    assert (told["rdev_major"], told["rdev_minor"]) == (major, minor)


def test_statx_without_btime_does_not_claim_it() -> None:
    mask = abi.STATX_OUT.unpack_from(reply.statx(1, 5, 1, STATUS, None, 0), 16)[3]
    assert mask == 0x7FF  # STATX_BASIC_STATS


def test_what_does_not_fit_the_wire_is_an_error_here() -> None:
    """Not a message that says something else."""
    with pytest.raises(struct.error):
        reply.error(1, 1 << 40)
    with pytest.raises(struct.error):
        reply.opened(1, -1, 0, 0)
    with pytest.raises(struct.error):
        reply.written(1, 1 << 32)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 255, 765])
@pytest.mark.parametrize("plus", [False, True])
def test_a_directory_fills_to_the_last_byte(length: int, plus: bool) -> None:
    """FUSE_DIRENT_SIZE and FUSE_DIRENTPLUS_SIZE; 765 bytes are the longest name of vfat in UTF-8."""
    fixed = abi.DIRENTPLUS.size if plus else abi.DIRENT.size
    record = fixed + -(-length // 8) * 8

    def fill(size: int) -> tuple[int, bytes]:
        listing = DirectoryReply(UNIQUE, size)
        add: Callable[[int], bool] = (
            (lambda at: listing.add_plus(b"n" * length, 2, 2, 1, STATUS, at, 0, 0)) if plus
            else (lambda at: listing.add(b"n" * length, 2, 0o100644, at))
        )
        count = 0
        while add(count + 1):
            count += 1
        return count, listing.message()

    for size, count in ((record - 1, 0), (record, 1), (3 * record - 1, 2), (3 * record, 3)):
        added, message = fill(size)
        assert added == count
        assert len(message) == 16 + count * record
        assert abi.OUT_HEADER.unpack_from(message) == (len(message), 0, UNIQUE)


def test_a_smaller_entry_may_follow_one_that_did_not_fit() -> None:
    listing = DirectoryReply(UNIQUE, 64)
    assert not listing.add(b"n" * 41, 2, 0, 1)
    assert listing.add(b"n" * 40, 2, 0, 1)
    assert not listing.add(b"n", 2, 0, 2)


@pytest.mark.parametrize(
    "name, line",
    [
        ("error", "tx 578437695752307201: ENOENT"),
        ("ok", "tx 578437695752307201: OK"),
        ("data", "tx 578437695752307201: OK 3 bytes"),
        ("notify_inval_inode", "tx: INVAL_INODE ino=24930 off=-1"),
        ("notify_inval_entry", "tx: INVAL_ENTRY parent=24930 namelen=4 flags=0x1 ['name']"),
        ("notify_store", "tx: STORE nodeid=24930 offset=3 size=4 4 bytes"),
        ("notify_delete", "tx: DELETE parent=24930 child=25444 namelen=4 ['name']"),
        ("notify_inc_epoch", "tx: INC_EPOCH"),
        ("notify_prune", "tx: PRUNE count=2 16 bytes"),
    ],
)
def test_lines(name: str, line: str) -> None:
    assert tx(ANSWERS[name][0]) == line
