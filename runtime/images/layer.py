"""A layer's archive on its way in, from a file to a blob, and on its way out, from a blob to a tree.

Imported by who moves one: the codecs behind it would cost every `run` their start-up time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from drivers.archive.decompress import decompress
from drivers.archive.errors import ArchiveError
from drivers.archive.extract import extract
from drivers.archive.limits import Limits
from drivers.archive.reader import Source
from drivers.archive.validate import validate

_READ = 1 << 20


def take_in(tar_path: str, write: Callable[[bytes], object], limits: Limits) -> None:
    """Check the archive at `tar_path` from its first byte to its last, giving them to `write`, uncompressed.

    ArchiveError, OSError; what was written is not to be used then.
    """
    with decompress(tar_path, limits=limits) as plain:
        validate(_Tee(plain, write), limits=limits)


def put_out(archive: Source, root_fd: int, diff_id: str) -> None:
    """Extract `archive` below `root_fd`, and make sure that it was the one of `diff_id`: a disk may have failed.

    ArchiveError; what is below `root_fd` is not to be used then.
    """
    digest = hashlib.sha256()
    read = _Tee(archive, digest.update)
    extract(read, root_fd)
    while read.read(_READ):
        pass
    if f"sha256:{digest.hexdigest()}" != diff_id:
        raise ArchiveError("it is damaged on disk; import the image again")


class _Tee:
    """`stream`; each byte that is read of it is given to `write` too."""

    def __init__(self, stream: Source, write: Callable[[bytes], object]) -> None:
        self._stream, self._write = stream, write

    def read(self, size: int, /) -> bytes:
        piece = self._stream.read(size)
        self._write(piece)
        return piece
