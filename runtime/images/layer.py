"""A layer's archive on its way in, from a file to a blob, and on its way out, from a blob to a tree.

Imported by who moves one: the codecs behind it would cost every `run` their start-up time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import BinaryIO

from drivers.archive.decompress import decompress
from drivers.archive.errors import ArchiveError
from drivers.archive.extract import extract
from drivers.archive.layered import Onto
from drivers.archive.limits import DEFAULT, Limits
from drivers.archive.reader import Source
from drivers.archive.validate import read_padding, validate

_READ = 1 << 20


def take_in(tar_path: str, write: Callable[[bytes], object], limits: Limits) -> None:
    """Check the archive at `tar_path` from its first byte to its last, giving them to `write`, uncompressed.

    ArchiveError, OSError; what was written is not to be used then. An empty file and one with something behind the
    archive, which a layer may be, are a user's mistake here.
    """
    with decompress(tar_path, limits=limits) as plain:
        read = _Tee(plain, write)
        validate(read, limits=limits)
        read_padding(read, limits=limits)
        if not read.size:
            raise ArchiveError("it is empty")


def check(blob_fd: int, diff_id: str, *, upper: bool, limits: Limits = DEFAULT) -> None:
    """Judge the layer in the file `blob_fd`, compressed or not, from its first byte to its last; an `upper` one has
    others below it.

    ArchiveError when it is not a layer, or not the one of `diff_id`.
    """
    digest = hashlib.sha256()
    os.lseek(blob_fd, 0, os.SEEK_SET)
    with decompress(blob_fd, limits=limits) as plain:
        read = _Tee(plain, digest.update)
        validate(read, limits=limits, upper=upper)
        while read.read(_READ):  # nothing of the layer, but part of what its digest was made of
            pass
    if f"sha256:{digest.hexdigest()}" != diff_id:
        raise ArchiveError(f"it is not the layer {diff_id[:19]} that its image says; get the image again")


def put_out(blob: BinaryIO, place: int | Onto, diff_id: str) -> None:
    """Extract the layer `blob`, compressed or not, into `place` (drivers.archive.target), and make sure that it was the
    one of `diff_id`.

    The blob itself was verified when it came; the diff id tells now whether a disk has failed since, or the image's
    configuration lies. ArchiveError; what is in `place` is not to be used then.
    """
    digest = hashlib.sha256()
    with decompress(blob.fileno()) as plain:
        read = _Tee(plain, digest.update)
        extract(read, place)
        while read.read(_READ):
            pass
    if f"sha256:{digest.hexdigest()}" != diff_id:
        why = "its diff id is wrong: it is damaged on disk, or was built wrong"
        raise ArchiveError(f"{why}; remove the image and get it again")


class _Tee:
    """`stream`; each byte that is read of it is given to `write` too. `size` is how many it were."""

    def __init__(self, stream: Source, write: Callable[[bytes], object]) -> None:
        self._stream, self._write = stream, write
        self.size = 0

    def read(self, size: int, /) -> bytes:
        piece = self._stream.read(size)
        self._write(piece)
        self.size += len(piece)
        return piece
