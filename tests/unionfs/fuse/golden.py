"""One request an opcode, byte by byte, with what it parses to and how it is told.

Recorded from Linux 6.18 (7.45): a small tree, and the system calls that bring each one about. FUSE_SECURITY_CTX was
agreed on, so what makes an entry carries an extension, also where no security module has anything to say. Composed
after the header: BMAP and DESTROY, SYNCFS, SETUPMAPPING and REMOVEMAPPING, which only fuseblk or virtiofs send, and
NOTIFY_REPLY, which answers a notification that this server has no use for.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Golden(NamedTuple):
    text: str
    fields: tuple[Any, ...]
    names: list[bytes]
    data: bytes
    line: str

    @property
    def message(self) -> bytes:
        return unannotated(self.text)


def unannotated(text: str) -> bytes:
    """The bytes of hexadecimal lines that may end in a comment."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


REQUESTS = {
    "LOOKUP": Golden(
        """
        2a000000 01000000 0400000000000000 0100000000000000   # 42 bytes, opcode 1, unique 0x4, node 1
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        6600                                                  # 'f'
        """,
        (), [b"f"], b"",
        "LOOKUP i1 ['f'] by 0:0 pid 24655",
    ),
    "FORGET": Golden(
        """
        30000000 02000000 3e00000000000000 0300000000000000   # 48 bytes, opcode 2, unique 0x3e, node 3
        00000000 00000000 00000000 0000 0000                  # uid 0, gid 0, pid 0, no extensions
        0200000000000000                                      # nlookup
        """,
        (2,), [], b"",
        "FORGET i3 nlookup=2 by 0:0 pid 0",
    ),
    "GETATTR": Golden(
        """
        38000000 03000000 0600000000000000 0200000000000000   # 56 bytes, opcode 3, unique 0x6, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        00000000 00000000 0000000000000000                    # getattr_flags, -, fh
        """,
        (0, 0), [], b"",
        "GETATTR i2 by 0:0 pid 24655",
    ),
    "SETATTR": Golden(
        """
        80000000 04000000 4a00000000000000 0200000000000000   # 128 bytes, opcode 4, unique 0x4a, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        30000000 00000000 0000000000000000 0000000000000000   # valid, -, fh, size
        0000000000000000 ffffffffffffffff 0100000000000000    # lock_owner, atime, mtime
        0000000000000000 fbc99a3b 07000000 00000000 00000000  # ctime, atimensec, mtimensec, ctimensec, mode
        00000000 00000000 00000000 00000000                   # -, uid, gid, -
        """,
        (0x30, 0, 0, 0, -1, 1, 0, 999999995, 7, 0, 0, 0, 0), [], b"",
        "SETATTR i2 valid=0x30 atime=-1 mtime=1 atimensec=999999995 mtimensec=7 by 0:0 pid 24655",
    ),
    "READLINK": Golden(
        """
        28000000 05000000 1000000000000000 0400000000000000   # 40 bytes, opcode 5, unique 0x10, node 4
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        """,
        (), [], b"",
        "READLINK i4 by 0:0 pid 24655",
    ),
    "SYMLINK": Golden(
        """
        36000000 06000000 1400000000000000 0100000000000000   # 54 bytes, opcode 6, unique 0x14, node 1
        00000000 00000000 4f600000 0100 0000                  # uid 0, gid 0, pid 24655, 1 word of extensions
        6e3100                                                # 'n1'
        746f00                                                # 'to'
        08000000 00000000                                     # fuse_secctx_header: 8 bytes, no contexts
        """,
        (), [b"n1", b"to"], b"",
        "SYMLINK i1 ['n1', 'to'] by 0:0 pid 24655",
    ),
    "MKNOD": Golden(
        """
        43000000 08000000 1800000000000000 0100000000000000   # 67 bytes, opcode 8, unique 0x18, node 1
        00000000 00000000 4f600000 0100 0000                  # uid 0, gid 0, pid 24655, 1 word of extensions
        80810000 00000000 12000000 00000000                   # mode, rdev, umask, -
        6e3200                                                # 'n2'
        08000000 00000000                                     # fuse_secctx_header: 8 bytes, no contexts
        """,
        (0o100600, 0, 0o22), [b"n2"], b"",
        "MKNOD i1 ['n2'] mode=0100600 umask=022 by 0:0 pid 24655",
    ),
    "MKDIR": Golden(
        """
        3b000000 09000000 1c00000000000000 0100000000000000   # 59 bytes, opcode 9, unique 0x1c, node 1
        00000000 00000000 4f600000 0100 0000                  # uid 0, gid 0, pid 24655, 1 word of extensions
        e8010000 12000000                                     # mode, umask
        6e3300                                                # 'n3'
        08000000 00000000                                     # fuse_secctx_header: 8 bytes, no contexts
        """,
        (0o750, 0o22), [b"n3"], b"",
        "MKDIR i1 ['n3'] mode=0750 umask=022 by 0:0 pid 24655",
    ),
    "UNLINK": Golden(
        """
        2a000000 0a000000 2600000000000000 0100000000000000   # 42 bytes, opcode 10, unique 0x26, node 1
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        6600                                                  # 'f'
        """,
        (), [b"f"], b"",
        "UNLINK i1 ['f'] by 0:0 pid 24655",
    ),
    "RMDIR": Golden(
        """
        2a000000 0b000000 2a00000000000000 0100000000000000   # 42 bytes, opcode 11, unique 0x2a, node 1
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        6400                                                  # 'd'
        """,
        (), [b"d"], b"",
        "RMDIR i1 ['d'] by 0:0 pid 24655",
    ),
    "RENAME": Golden(
        """
        35000000 0c000000 3000000000000000 0100000000000000   # 53 bytes, opcode 12, unique 0x30, node 1
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        0100000000000000                                      # newdir
        6600                                                  # 'f'
        6e3500                                                # 'n5'
        """,
        (1,), [b"f", b"n5"], b"",
        "RENAME i1 ['f', 'n5'] newdir=1 by 0:0 pid 24655",
    ),
    "LINK": Golden(
        """
        33000000 0d000000 2200000000000000 0100000000000000   # 51 bytes, opcode 13, unique 0x22, node 1
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        0200000000000000                                      # oldnodeid
        6e3400                                                # 'n4'
        """,
        (2,), [b"n4"], b"",
        "LINK i1 ['n4'] oldnodeid=2 by 0:0 pid 24655",
    ),
    "OPEN": Golden(
        """
        30000000 0e000000 5400000000000000 0200000000000000   # 48 bytes, opcode 14, unique 0x54, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        02800000 00000000                                     # flags, open_flags
        """,
        (0x8002, 0), [], b"",
        "OPEN i2 flags=0x8002 by 0:0 pid 24655",
    ),
    "READ": Golden(
        """
        50000000 0f000000 5600000000000000 0200000000000000   # 80 bytes, opcode 15, unique 0x56, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 0000000000000000 64000000 02000000   # fh, offset, size, read_flags
        8e177f752a482fb3 02800000 00000000                    # lock_owner, flags, -
        """,
        (77, 0, 100, 0x2, 0xb32f482a757f178e, 0x8002), [], b"",
        "READ i2 fh=77 size=100 read_flags=0x2 lock_owner=0xb32f482a757f178e flags=0x8002 by 0:0 pid 24655",
    ),
    "WRITE": Golden(
        """
        55000000 10000000 5800000000000000 0200000000000000   # 85 bytes, opcode 16, unique 0x58, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 0400000000000000 05000000 02000000   # fh, offset, size, write_flags
        8e177f752a482fb3 02800000 00000000                    # lock_owner, flags, -
        68656c6c6f                                            # data
        """,
        (77, 4, 5, 0x2, 0xb32f482a757f178e, 0x8002), [], b"hello",
        "WRITE i2 fh=77 offset=4 size=5 write_flags=0x2 lock_owner=0xb32f482a757f178e flags=0x8002 "
        "5 bytes by 0:0 pid 24655",
    ),
    "STATFS": Golden(
        """
        28000000 11000000 8c00000000000000 0100000000000000   # 40 bytes, opcode 17, unique 0x8c, node 1
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        """,
        (), [], b"",
        "STATFS i1 by 0:0 pid 24655",
    ),
    "RELEASE": Golden(
        """
        40000000 12000000 9800000000000000 0200000000000000   # 64 bytes, opcode 18, unique 0x98, node 2
        00000000 00000000 00000000 0000 0000                  # uid 0, gid 0, pid 0, no extensions
        4d00000000000000 02800000 02000000 ec672200ff405210   # fh, flags, release_flags, lock_owner
        """,
        (77, 0x8002, 0x2, 0x105240ff002267ec), [], b"",
        "RELEASE i2 fh=77 flags=0x8002 release_flags=0x2 lock_owner=0x105240ff002267ec by 0:0 pid 0",
    ),
    "FSYNC": Golden(
        """
        38000000 14000000 5c00000000000000 0200000000000000   # 56 bytes, opcode 20, unique 0x5c, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 01000000 00000000                    # fh, fsync_flags, -
        """,
        (77, 0x1), [], b"",
        "FSYNC i2 fh=77 fsync_flags=0x1 by 0:0 pid 24655",
    ),
    "SETXATTR": Golden(
        """
        41000000 15000000 7a00000000000000 0200000000000000   # 65 bytes, opcode 21, unique 0x7a, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        0a000000 00000000                                     # size, flags
        757365722e6100                                        # 'user.a'
        76616c7565006d6f7265                                  # data
        """,
        (10, 0), [b"user.a"], b"value\x00more",
        "SETXATTR i2 ['user.a'] size=10 10 bytes by 0:0 pid 24655",
    ),
    "GETXATTR": Golden(
        """
        37000000 16000000 7e00000000000000 0200000000000000   # 55 bytes, opcode 22, unique 0x7e, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        80000000 00000000                                     # size, -
        757365722e6100                                        # 'user.a'
        """,
        (128,), [b"user.a"], b"",
        "GETXATTR i2 ['user.a'] size=128 by 0:0 pid 24655",
    ),
    "LISTXATTR": Golden(
        """
        30000000 17000000 8200000000000000 0200000000000000   # 48 bytes, opcode 23, unique 0x82, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        00010000 00000000                                     # size, -
        """,
        (256,), [], b"",
        "LISTXATTR i2 size=256 by 0:0 pid 24655",
    ),
    "REMOVEXATTR": Golden(
        """
        2f000000 18000000 8600000000000000 0200000000000000   # 47 bytes, opcode 24, unique 0x86, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        757365722e6100                                        # 'user.a'
        """,
        (), [b"user.a"], b"",
        "REMOVEXATTR i2 ['user.a'] by 0:0 pid 24655",
    ),
    "FLUSH": Golden(
        """
        40000000 19000000 9600000000000000 0200000000000000   # 64 bytes, opcode 25, unique 0x96, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 0000000000000000 8e177f752a482fb3    # fh, -, lock_owner
        """,
        (77, 0xb32f482a757f178e), [], b"",
        "FLUSH i2 fh=77 lock_owner=0xb32f482a757f178e by 0:0 pid 24655",
    ),
    "INIT": Golden(
        """
        68000000 1a000000 0200000000000000 0000000000000000   # 104 bytes, opcode 26, unique 0x2, node 0
        00000000 00000000 00000000 0000 0000                  # uid 0, gid 0, pid 0, no extensions
        07000000 2d000000 00000200 fbffff73 fd050000          # major, minor, max_readahead, flags, flags2
        0000000000000000000000000000000000000000000000000000  # -
        000000000000000000000000000000000000                  # -
        """,
        (7, 45, 131072, 0x73fffffb, 0x5fd), [], b"",
        "INIT i0 major=7 minor=45 max_readahead=131072 flags=0x73fffffb flags2=0x5fd by 0:0 pid 0",
    ),
    "OPENDIR": Golden(
        """
        30000000 1b000000 3200000000000000 0100000000000000   # 48 bytes, opcode 27, unique 0x32, node 1
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        00800000 00000000                                     # flags, open_flags
        """,
        (0x8000, 0), [], b"",
        "OPENDIR i1 flags=0x8000 by 0:0 pid 24655",
    ),
    "READDIR": Golden(
        """
        50000000 1c000000 1400000000000000 0100000000000000   # 80 bytes, opcode 28, unique 0x14, node 1
        00000000 00000000 230b0000 0000 0000                  # uid 0, gid 0, pid 2851, no extensions
        4d00000000000000 0000000000000000 00800000 00000000   # fh, offset, size, read_flags
        0000000000000000 00880100 00000000                    # lock_owner, flags, -
        """,
        (77, 0, 32768, 0, 0, 0x18800), [], b"",
        "READDIR i1 fh=77 size=32768 flags=0x18800 by 0:0 pid 2851",
    ),
    "RELEASEDIR": Golden(
        """
        40000000 1d000000 b000000000000000 0100000000000000   # 64 bytes, opcode 29, unique 0xb0, node 1
        00000000 00000000 00000000 0000 0000                  # uid 0, gid 0, pid 0, no extensions
        4d00000000000000 00880100 00000000 0000000000000000   # fh, flags, release_flags, lock_owner
        """,
        (77, 0x18800, 0, 0), [], b"",
        "RELEASEDIR i1 fh=77 flags=0x18800 by 0:0 pid 0",
    ),
    "FSYNCDIR": Golden(
        """
        38000000 1e000000 b400000000000000 0100000000000000   # 56 bytes, opcode 30, unique 0xb4, node 1
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 00000000 00000000                    # fh, fsync_flags, -
        """,
        (77, 0), [], b"",
        "FSYNCDIR i1 fh=77 by 0:0 pid 24655",
    ),
    "GETLK": Golden(
        """
        58000000 1f000000 9000000000000000 0200000000000000   # 88 bytes, opcode 31, unique 0x90, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 8e177f752a482fb3 0100000000000000    # fh, owner, start
        0200000000000000 01000000 00000000 00000000 00000000  # end, type, pid, lk_flags, -
        """,
        (77, 0xb32f482a757f178e, 1, 2, 1, 0, 0), [], b"",
        "GETLK i2 fh=77 owner=0xb32f482a757f178e start=1 end=2 type=1 by 0:0 pid 24655",
    ),
    "SETLK": Golden(
        """
        58000000 20000000 0800000000000000 0200000000000000   # 88 bytes, opcode 32, unique 0x8, node 2
        00000000 00000000 230b0000 0000 0000                  # uid 0, gid 0, pid 2851, no extensions
        4d00000000000000 c61e0abcc2a932ad 1400000000000000    # fh, owner, start
        1d00000000000000 00000000 230b0000 00000000 00000000  # end, type, pid, lk_flags, -
        """,
        (77, 0xad32a9c2bc0a1ec6, 20, 29, 0, 2851, 0), [], b"",
        "SETLK i2 fh=77 owner=0xad32a9c2bc0a1ec6 start=20 end=29 pid=2851 by 0:0 pid 2851",
    ),
    "SETLKW": Golden(
        """
        58000000 21000000 9200000000000000 0200000000000000   # 88 bytes, opcode 33, unique 0x92, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 ec672200ff405210 0000000000000000    # fh, owner, start
        ffffffffffffff7f 01000000 4f600000 01000000 00000000  # end, type, pid, lk_flags, -
        """,
        (77, 0x105240ff002267ec, 0, 9223372036854775807, 1, 24655, 0x1), [], b"",
        "SETLKW i2 fh=77 owner=0x105240ff002267ec end=9223372036854775807 type=1 pid=24655 "
        "lk_flags=0x1 by 0:0 pid 24655",
    ),
    "ACCESS": Golden(
        """
        30000000 22000000 8a00000000000000 0200000000000000   # 48 bytes, opcode 34, unique 0x8a, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        04000000 00000000                                     # mask, -
        """,
        (4,), [], b"",
        "ACCESS i2 mask=0x4 by 0:0 pid 24655",
    ),
    "CREATE": Golden(
        """
        44000000 23000000 9c00000000000000 0100000000000000   # 68 bytes, opcode 35, unique 0x9c, node 1
        00000000 00000000 4f600000 0100 0000                  # uid 0, gid 0, pid 24655, 1 word of extensions
        c2800000 a0810000 12000000 00000000                   # flags, mode, umask, open_flags
        6e657700                                              # 'new'
        08000000 00000000                                     # fuse_secctx_header: 8 bytes, no contexts
        """,
        (0x80c2, 0o100640, 0o22, 0), [b"new"], b"",
        "CREATE i1 ['new'] flags=0x80c2 mode=0100640 umask=022 by 0:0 pid 24655",
    ),
    "INTERRUPT": Golden(
        """
        30000000 24000000 1b00000000000000 0000000000000000   # 48 bytes, opcode 36, unique 0x1b, node 0
        00000000 00000000 00000000 0000 0000                  # uid 0, gid 0, pid 0, no extensions
        1a00000000000000                                      # unique
        """,
        (26,), [], b"",
        "INTERRUPT i0 unique=26 by 0:0 pid 0",
    ),
    "BMAP": Golden(
        """
        38000000 25000000 1032547698badcfe 0200000000000000   # 56 bytes, opcode 37, unique 0xfedcba9876543210, node 2
        e8030000 64000000 4f600000 0000 0000                  # uid 1000, gid 100, pid 24655, no extensions
        0700000000000000 00100000 00000000                    # block, blocksize, -
        """,
        (7, 4096), [], b"",
        "BMAP i2 block=7 blocksize=4096 by 1000:100 pid 24655",
    ),
    "DESTROY": Golden(
        """
        28000000 26000000 1032547698badcfe 0000000000000000   # 40 bytes, opcode 38, unique 0xfedcba9876543210, node 0
        e8030000 64000000 4f600000 0000 0000                  # uid 1000, gid 100, pid 24655, no extensions
        """,
        (), [], b"",
        "DESTROY i0 by 1000:100 pid 24655",
    ),
    "IOCTL": Golden(
        """
        4c000000 27000000 7400000000000000 0200000000000000   # 76 bytes, opcode 39, unique 0x74, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 00000000 02660840 0000000000000000   # fh, flags, cmd, arg
        04000000 00000000                                     # in_size, out_size
        10000000                                              # data
        """,
        (77, 0, 0x40086602, 0, 4, 0), [], b"\x10\x00\x00\x00",
        "IOCTL i2 fh=77 cmd=0x40086602 in_size=4 4 bytes by 0:0 pid 24655",
    ),
    "POLL": Golden(
        """
        40000000 28000000 9400000000000000 0200000000000000   # 64 bytes, opcode 40, unique 0x94, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 0300000000000000 00000000 19000000   # fh, kh, flags, events
        """,
        (77, 3, 0, 25), [], b"",
        "POLL i2 fh=77 kh=3 events=0x19 by 0:0 pid 24655",
    ),
    "NOTIFY_REPLY": Golden(
        """
        53000000 29000000 1032547698badcfe 0200000000000000   # 83 bytes, opcode 41, unique 0xfedcba9876543210, node 2
        e8030000 64000000 4f600000 0000 0000                  # uid 1000, gid 100, pid 24655, no extensions
        0000000000000000 0010000000000000 03000000            # -, offset, size
        0000000000000000000000000000000000000000              # -
        616263                                                # data
        """,
        (4096, 3), [], b"abc",
        "NOTIFY_REPLY i2 offset=4096 size=3 3 bytes by 1000:100 pid 24655",
    ),
    "BATCH_FORGET": Golden(
        """
        50000000 2a000000 ba00000000000000 0000000000000000   # 80 bytes, opcode 42, unique 0xba, node 0
        00000000 00000000 00000000 0000 0000                  # uid 0, gid 0, pid 0, no extensions
        02000000 00000000                                     # count, -
        0200000000000000 1500000000000000                     # data
        0300000000000000 0100000000000000                     # data
        """,
        (2,), [], bytes.fromhex("0200000000000000 1500000000000000 0300000000000000 0100000000000000"),
        "BATCH_FORGET i0 count=2 i2-21 i3-1 by 0:0 pid 0",
    ),
    "FALLOCATE": Golden(
        """
        48000000 2b000000 6000000000000000 0200000000000000   # 72 bytes, opcode 43, unique 0x60, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 0000000000000000 0010000000000000    # fh, offset, length
        01000000 00000000                                     # mode, -
        """,
        (77, 0, 4096, 0o1), [], b"",
        "FALLOCATE i2 fh=77 length=4096 mode=01 by 0:0 pid 24655",
    ),
    "READDIRPLUS": Golden(
        """
        50000000 2c000000 ac00000000000000 0100000000000000   # 80 bytes, opcode 44, unique 0xac, node 1
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 0000000000000000 00800000 00000000   # fh, offset, size, read_flags
        0000000000000000 00880100 00000000                    # lock_owner, flags, -
        """,
        (77, 0, 32768, 0, 0, 0x18800), [], b"",
        "READDIRPLUS i1 fh=77 size=32768 flags=0x18800 by 0:0 pid 24655",
    ),
    "RENAME2": Golden(
        """
        3d000000 2d000000 3a00000000000000 0100000000000000   # 61 bytes, opcode 45, unique 0x3a, node 1
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        0100000000000000 01000000 00000000                    # newdir, flags, -
        6600                                                  # 'f'
        6e3600                                                # 'n6'
        """,
        (1, 0x1), [b"f", b"n6"], b"",
        "RENAME2 i1 ['f', 'n6'] newdir=1 flags=0x1 by 0:0 pid 24655",
    ),
    "LSEEK": Golden(
        """
        40000000 2e000000 6200000000000000 0200000000000000   # 64 bytes, opcode 46, unique 0x62, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 0000000000000000 03000000 00000000   # fh, offset, whence, -
        """,
        (77, 0, 3), [], b"",
        "LSEEK i2 fh=77 whence=3 by 0:0 pid 24655",
    ),
    "COPY_FILE_RANGE": Golden(
        """
        60000000 2f000000 0e00000000000000 0200000000000000   # 96 bytes, opcode 47, unique 0xe, node 2
        00000000 00000000 230b0000 0000 0000                  # uid 0, gid 0, pid 2851, no extensions
        4d00000000000000 0000000000000000 0200000000000000    # fh_in, off_in, nodeid_out
        4d00000000000000 6400000000000000 0300000000000000    # fh_out, off_out, len
        0000000000000000                                      # flags
        """,
        (77, 0, 2, 77, 100, 3, 0), [], b"",
        "COPY_FILE_RANGE i2 fh_in=77 nodeid_out=2 fh_out=77 off_out=100 len=3 by 0:0 pid 2851",
    ),
    "SETUPMAPPING": Golden(
        """
        50000000 30000000 1032547698badcfe 0200000000000000   # 80 bytes, opcode 48, unique 0xfedcba9876543210, node 2
        e8030000 64000000 4f600000 0000 0000                  # uid 1000, gid 100, pid 24655, no extensions
        4d00000000000000 0010000000000000 0020000000000000    # fh, foffset, len
        0300000000000000 0000010000000000                     # flags, moffset
        """,
        (77, 4096, 8192, 0x3, 65536), [], b"",
        "SETUPMAPPING i2 fh=77 foffset=4096 len=8192 flags=0x3 moffset=65536 by 1000:100 pid 24655",
    ),
    "REMOVEMAPPING": Golden(
        """
        4c000000 31000000 1032547698badcfe 0200000000000000   # 76 bytes, opcode 49, unique 0xfedcba9876543210, node 2
        e8030000 64000000 4f600000 0000 0000                  # uid 1000, gid 100, pid 24655, no extensions
        02000000                                              # count
        0000010000000000 0010000000000000                     # data
        0000020000000000 0020000000000000                     # data
        """,
        (2,), [], bytes.fromhex("0000010000000000 0010000000000000 0000020000000000 0020000000000000"),
        "REMOVEMAPPING i2 count=2 32 bytes by 1000:100 pid 24655",
    ),
    "SYNCFS": Golden(
        """
        30000000 32000000 1032547698badcfe 0100000000000000   # 48 bytes, opcode 50, unique 0xfedcba9876543210, node 1
        e8030000 64000000 4f600000 0000 0000                  # uid 1000, gid 100, pid 24655, no extensions
        0000000000000000                                      # -
        """,
        (), [], b"",
        "SYNCFS i1 by 1000:100 pid 24655",
    ),
    "TMPFILE": Golden(
        """
        42000000 33000000 a200000000000000 0100000000000000   # 66 bytes, opcode 51, unique 0xa2, node 1
        00000000 00000000 4f600000 0100 0000                  # uid 0, gid 0, pid 24655, 1 word of extensions
        02804100 80810000 12000000 00000000                   # flags, mode, umask, open_flags
        2f00                                                  # '/'
        08000000 00000000                                     # fuse_secctx_header: 8 bytes, no contexts
        """,
        (0x418002, 0o100600, 0o22, 0), [b"/"], b"",
        "TMPFILE i1 ['/'] flags=0x418002 mode=0100600 umask=022 by 0:0 pid 24655",
    ),
    "STATX": Golden(
        """
        40000000 34000000 0c00000000000000 0200000000000000   # 64 bytes, opcode 52, unique 0xc, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        00000000 00000000 0000000000000000 00000000 ff0f0000  # getattr_flags, -, fh, sx_flags, sx_mask
        """,
        (0, 0, 0, 0xfff), [], b"",
        "STATX i2 sx_mask=0xfff by 0:0 pid 24655",
    ),
    "COPY_FILE_RANGE_64": Golden(
        """
        60000000 35000000 6400000000000000 0200000000000000   # 96 bytes, opcode 53, unique 0x64, node 2
        00000000 00000000 4f600000 0000 0000                  # uid 0, gid 0, pid 24655, no extensions
        4d00000000000000 0000000000000000 0200000000000000    # fh_in, off_in, nodeid_out
        4d00000000000000 6400000000000000 0300000000000000    # fh_out, off_out, len
        0000000000000000                                      # flags
        """,
        (77, 0, 2, 77, 100, 3, 0), [], b"",
        "COPY_FILE_RANGE_64 i2 fh_in=77 nodeid_out=2 fh_out=77 off_out=100 len=3 by 0:0 pid 24655",
    ),
}
