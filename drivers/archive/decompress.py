"""The plain bytes of a file that may be compressed: gzip, bzip2 and xz by the standard library, zstd by its program.

A file's first bytes say what it is, not its name. A decompressor never produces more than it is asked for, so a bomb
costs its reader's limit and no more; xz and zstd are held to a memory limit besides. Nor does a small file keep us busy
for long: after the first few megabytes no more may come out than `Limits.ratio` allows for what went in.
"""

from __future__ import annotations

import bz2
import contextlib
import lzma
import os
import shutil
import stat
import subprocess
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from drivers.archive.errors import ArchiveError
from drivers.archive.limits import DEFAULT, Limits
from drivers.archive.reader import Source

_READ = 128 << 10
_MAGICS = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))
_LONGEST = 6  # bytes of a magic
_UNCOUNTED = 64 << 20  # bytes that may come out whatever went in: a small layer of zeros harms nobody


class Decoder(Protocol):
    """bz2.BZ2Decompressor and lzma.LZMADecompressor as they are."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gunzip:
    """zlib's decompressor in the form of the other two; checks the member's CRC and length (wbits 16+15)."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def packing(first: bytes) -> str:
    """What a file that begins with these bytes, six or more, is packed with: "gzip", "zstd", "bzip2" or "xz"; "" for
    none of them. A zstd stream may begin with a frame to be skipped (RFC 8878, 3.1.2), as zstd:chunked and pzstd's do.
    """
    return next((name for start, name in _MAGICS if first.startswith(start)), "zstd" if _is_skippable(first) else "")


def _is_skippable(first: bytes) -> bool:
    return len(first) >= 4 and int.from_bytes(first[:4], "little") & ~0xF == 0x184D2A50


@contextlib.contextmanager
def decompress(source: str | os.PathLike[str] | int, *, limits: Limits = DEFAULT) -> Iterator[Source]:
    """The uncompressed bytes of `source`, a path or a descriptor (which stays the caller's), from where it stands.

    Reading raises ArchiveError for damaged or truncated data, and past `limits.total` bytes. OSError when `source`
    cannot be opened or is a directory.
    """
    with open(source, "rb", closefd=not isinstance(source, int)) as file:
        name = packing(file.peek(6)[:6])
        if name == "zstd":
            with _zstd(file, len(file.peek()), limits) as plain:
                yield _Bounded(plain, limits, plain.consumed)
            return
        if name:
            inflated = _Inflated(file, name, limits)
            yield _Bounded(inflated, limits, inflated.consumed)
            return
        yield _Bounded(file, limits)


class _Bounded:
    """`stream`, refused past the limits; `consumed` gives how many compressed bytes have gone into it."""

    def __init__(self, stream: Source, limits: Limits, consumed: Callable[[], int] | None = None) -> None:
        self._stream = stream
        self._limits = limits
        self._consumed = consumed
        self._given = 0

    def read(self, size: int, /) -> bytes:
        piece = self._stream.read(size)
        self._given += len(piece)
        limits = self._limits
        if self._given > limits.total:
            raise ArchiveError(f"the archive is larger than the {limits.total} bytes that are allowed")
        if self._given > _UNCOUNTED and self._consumed and self._given > limits.ratio * self._consumed():
            raise ArchiveError(
                f"it is packed more than {limits.ratio} to 1, as only an archive that is meant to do harm is; "
                "unpack it yourself if you trust it"
            )
        return piece


class _Inflated:
    """The decompressed bytes of `file`: one stream, or several one after another, as `cat` makes them."""

    def __init__(self, file: Source, name: str, limits: Limits) -> None:
        self._file, self._name, self._memory = file, name, limits.memory
        self._decoder = self._new()
        self._pending = b""  # compressed bytes after the end of the last stream
        self._read = 0

    def _new(self) -> Decoder:
        if self._name == "xz":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, self._memory)
        return _Gunzip() if self._name == "gzip" else bz2.BZ2Decompressor()

    def consumed(self) -> int:
        """Compressed bytes so far."""
        return self._read

    def _more(self) -> bytes:
        data = self._file.read(_READ)
        self._read += len(data)
        return data

    def read(self, size: int, /) -> bytes:
        while not self._decoder.eof or self._next_stream():
            data = b""
            if self._decoder.needs_input:
                data, self._pending = self._pending or self._more(), b""
                if not data:
                    raise ArchiveError(f"the {self._name} data is cut short; get the file again")
            try:
                piece = self._decoder.decompress(data, min(size, _READ))
            except (OSError, zlib.error, lzma.LZMAError) as error:
                raise ArchiveError(f"the {self._name} data is damaged: {error}; get the file again") from None
            if piece:
                return piece
        return b""

    def _next_stream(self) -> bool:
        """Whether another stream follows. Zeros may come before it (padding of tapes and of xz); anything else is not
        one of these streams and is ignored, as gzip(1) does."""
        rest = self._decoder.unused_data.lstrip(b"\0")
        while len(rest) < _LONGEST and (more := self._more()):
            rest = (rest + more).lstrip(b"\0")
        if packing(rest) != self._name:
            return False
        self._decoder, self._pending = self._new(), rest
        return True


@contextlib.contextmanager
def _zstd(file: BinaryIO, ahead: int, limits: Limits) -> Iterator[_ZstdOutput]:
    """`file` through zstd(1), which the host's PATH finds, never one inside an image (CVE-2014-9357).

    `ahead` is how many bytes of it are buffered already and must be given back.
    """
    program = shutil.which("zstd")
    if program is None:
        raise ArchiveError("it is compressed with zstd, which is not installed; install zstd or use gzip")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise ArchiveError("it is compressed with zstd and comes through a pipe; save it to a file first")
    begin = os.lseek(file.fileno(), -ahead, os.SEEK_CUR)
    child = subprocess.Popen(
        [program, "-dcq", f"--memory={limits.memory >> 10}KiB"],
        stdin=file.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"LC_ALL": "C"},
    )
    with child:  # closes its pipes and waits for it
        try:
            yield _ZstdOutput(child, file.fileno(), begin)
        finally:
            child.kill()


class _ZstdOutput:
    """The standard output of a decompressor whose failure is known only at its end."""

    def __init__(self, child: subprocess.Popen[bytes], fd: int, begin: int) -> None:
        """`fd`: its standard input, which it reads from `begin` on; both have one file offset."""
        self._child, self._fd, self._begin = child, fd, begin

    def consumed(self) -> int:
        """Compressed bytes so far."""
        return os.lseek(self._fd, 0, os.SEEK_CUR) - self._begin

    def read(self, size: int, /) -> bytes:
        assert self._child.stdout is not None and self._child.stderr is not None
        piece = self._child.stdout.read(size)
        if not piece and self._child.wait() != 0:
            said = self._child.stderr.read(4096).decode(errors="replace").strip().splitlines()
            raise ArchiveError(f"the zstd data is damaged or cut short: {said[-1] if said else 'no reason given'}")
        return piece
