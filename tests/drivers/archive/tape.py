"""Tar archives written byte by byte, without tarfile and without the code under test: wrong ones too."""

from __future__ import annotations

import io
import os

BLOCK = 512
END = bytes(2 * BLOCK)
POSIX = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    return bytes([0xFF if value < 0 else 0x80]) + (value % (1 << 8 * (width - 1))).to_bytes(width - 1, "big")


def header(
    name: bytes,
    type: bytes = b"0",  # noqa: A002
    *,
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 1_000_000_000,
    link: bytes = b"",
    major: int = 0,
    minor: int = 0,
    prefix: bytes = b"",
    magic: bytes = POSIX,
    signed: bool = False,
    checksum: bytes | None = None,
) -> bytes:
    """One block. Numbers are octal, or the field's bytes as they are."""

    def field(value: int | bytes, width: int) -> bytes:
        return value if isinstance(value, bytes) else octal(value, width)

    block = b"".join([
        name[:100].ljust(100, b"\0"), field(mode, 8), field(uid, 8), field(gid, 8), field(size, 12), field(mtime, 12),
        b" " * 8, type, link[:100].ljust(100, b"\0"), magic, b"root".ljust(32, b"\0"), b"root".ljust(32, b"\0"),
        octal(major, 8), octal(minor, 8), prefix.ljust(155, b"\0"),
    ]).ljust(BLOCK, b"\0")  # fmt: skip
    assert len(block) == BLOCK
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    return block[:148] + (b"%06o\0 " % total if checksum is None else checksum) + block[156:]


def old_sparse(name: bytes, pieces: list[tuple[int, int]], size: int, stored: bytes, *, more: bool = False) -> bytes:
    """A sparse member as old GNU tar has it, with up to four pieces."""
    block = bytearray(header(name, b"S", size=len(stored), magic=GNU))
    for number, (offset, length) in enumerate(pieces):
        block[386 + 24 * number : 410 + 24 * number] = octal(offset, 12) + octal(length, 12)
    block[345:386] = bytes(41)
    block[482] = more
    block[483:495] = octal(size, 12)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + padded(stored)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: bytes, type: bytes, data: bytes = b"", link: bytes = b"", **fields: object) -> bytes:  # noqa: A002
    """A header with its content; names that do not fit come before it, as GNU tar writes them."""
    long = b"".join(extension(text + b"\0", kind) for text, kind in ((name, b"L"), (link, b"K")) if len(text) > 100)
    return long + header(name, type, link=link, **({"size": len(data)} | fields)) + padded(data)  # type: ignore[arg-type]


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    return member(name, b"0", data, **fields)  # type: ignore[arg-type]


def directory(name: bytes, **fields: object) -> bytes:
    return member(name, b"5", **({"mode": 0o755} | fields))  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes, **fields: object) -> bytes:
    return member(name, b"2", link=target, **({"mode": 0o777} | fields))  # type: ignore[arg-type]


def hard_link(name: bytes, target: bytes, **fields: object) -> bytes:
    return member(name, b"1", link=target, **fields)  # type: ignore[arg-type]


def record(keyword: bytes, value: bytes) -> bytes:
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def extension(body: bytes, type: bytes) -> bytes:  # noqa: A002
    return header(b"././@Extension", type, size=len(body)) + padded(body)


def pax(records: dict[bytes, bytes], type: bytes = b"x") -> bytes:  # noqa: A002
    return extension(b"".join(record(keyword, value) for keyword, value in records.items()), type)


def sparse(pieces: bytes, size: int, stored: bytes = b"") -> bytes:
    """A sparse member with its map in the pax header, version 0.1."""
    return pax({b"GNU.sparse.map": pieces, b"GNU.sparse.size": b"%d" % size}) + file(b"f", stored)


def sparse_text(text: bytes, size: int) -> bytes:
    """One with its map in the content, version 1.0."""
    return pax({b"GNU.sparse.major": b"1", b"GNU.sparse.realsize": b"%d" % size}) + file(b"f", padded(text))


def archive(*parts: bytes) -> bytes:
    return b"".join(parts) + END


def stream(*parts: bytes) -> io.BytesIO:
    return io.BytesIO(archive(*parts))


def snapshot(path: str) -> list[tuple[object, ...]]:
    """Everything that can be known of a tree, inode numbers, link counts and change times with it."""
    found: list[tuple[object, ...]] = []
    for directory_, names, files in sorted(os.walk(path)):
        for name in ["", *sorted([*names, *files])]:
            full = os.path.join(directory_, name)
            info = os.lstat(full)
            content = b""
            if os.path.isfile(full) and not os.path.islink(full):
                with open(full, "rb") as source:
                    content = source.read()
            found.append((full, info.st_ino, info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_size,
                          info.st_mtime_ns, info.st_ctime_ns, content))  # fmt: skip
    return found
