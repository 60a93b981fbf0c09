"""The files of an archive or a directory that somebody else made, by their names, none of them extracted.

A name is what an index of offsets is asked for, never a path of this machine: `..` in it finds nothing. Links inside an
archive lead to other members of it (docker before 25 wrote a layer that comes twice as a symbolic link), those of a
directory to what is below it. Whoever reads a member decides what it is worth.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import NamedTuple, Protocol

from drivers.archive.decompress import decompress, packing
from drivers.archive.errors import ArchiveError, shown
from drivers.archive.limits import DEFAULT, Limits
from drivers.archive.reader import Kind, Reader, Source
from runtime.images.blobs import Writer
from runtime.images.document import MAX_DOCUMENT
from unionfs.linux import consts, files

_READ = 1 << 20
_ENTRIES = 100_000  # of an archive of images: three for each layer
_HOPS = 8  # links behind links
_BENEATH = consts.RESOLVE_BENEATH | consts.RESOLVE_NO_MAGICLINKS


class Members(Protocol):
    def has(self, name: str) -> bool:
        """Whether there is a regular file of that name."""

    def open(self, name: str) -> AbstractContextManager[tuple[Source, int]]:
        """The content and its size in bytes. ArchiveError when there is none, or more than one."""


def document(members: Members, name: str) -> bytes:
    """A small member. ArchiveError, also for one that is too large to be a document."""
    with members.open(name) as (source, size):
        if size > MAX_DOCUMENT:
            raise ArchiveError(f"it has {size} bytes, {MAX_DOCUMENT} are allowed", entry=os.fsencode(name))
        return b"".join(pieces(source))


def pieces(source: Source) -> Iterator[bytes]:
    while piece := source.read(_READ):
        yield piece


@contextmanager
def opened(path: str, scratch: str, limits: Limits = DEFAULT) -> Iterator[Members]:
    """The members of the directory or archive at `path`; `/dev/stdin` and other pipes are fine.

    What is compressed, or cannot be read twice, is first written to an unnamed file in the directory `scratch`.
    ArchiveError for what is not an archive, OSError.
    """
    if os.path.isdir(path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield Directory(fd)
        finally:
            os.close(fd)
        return
    with open(path, "rb") as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            with _plain(file.fileno(), scratch, limits) as fd:
                yield Archive(fd, limits)
        else:
            with Writer(scratch) as spool:
                _copy(file, spool, limits)
                with _plain(spool.fileno(), scratch, limits) as fd:
                    yield Archive(fd, limits)


@contextmanager
def _plain(fd: int, scratch: str, limits: Limits) -> Iterator[int]:
    """A file with the uncompressed content of the regular file `fd`."""
    if not packing(os.pread(fd, 6, 0)):
        yield fd
        return
    os.lseek(fd, 0, os.SEEK_SET)
    with Writer(scratch) as spool:
        with decompress(fd, limits=limits) as source:
            _copy(source, spool, limits)
        yield spool.fileno()


def _copy(source: Source, spool: Writer, limits: Limits) -> None:
    for piece in pieces(source):
        spool.write(piece)
        if spool.size > limits.total:
            raise ArchiveError(f"the archive is larger than the {limits.total} bytes that are allowed")


class _Extent:
    """`size` bytes of the file `fd` from `offset` on, which stays the caller's."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._offset, self._left = fd, offset, size

    def read(self, size: int, /) -> bytes:
        piece = os.pread(self._fd, min(size, self._left), self._offset)
        self._offset += len(piece)
        self._left -= len(piece)
        return piece


class _Member(NamedTuple):
    kind: Kind
    offset: int
    size: int
    target: str  # of a link, as the name of a member


class Archive:
    """An uncompressed tar in a seekable file. Two members of one name are none: a reader could be shown either. But two
    of the same content are one: tools of 2019 wrote a layer that comes twice in an image twice."""

    def __init__(self, fd: int, limits: Limits = DEFAULT) -> None:
        """Reads all of it once, from its beginning. ArchiveError."""
        self._fd = fd
        self._members: dict[str, _Member] = {}
        self._twice: set[str] = set()
        reader = Reader(_Extent(fd, 0, os.fstat(fd).st_size), replace(limits, entries=_ENTRIES))
        for entry in reader:
            raw = os.fsdecode(entry.name).lstrip("/")  # as whoever extracts it has it
            name, link = posixpath.normpath(raw), os.fsdecode(entry.linkname)
            if entry.kind is Kind.SYMLINK:
                link = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
            member = _Member(entry.kind, reader.position, entry.size, posixpath.normpath(link))
            known = self._members.setdefault(name, member)
            if known is not member and entry.kind is not Kind.DIRECTORY and not self._is_same(known, member):
                self._twice.add(name)

    def _is_same(self, one: _Member, other: _Member) -> bool:
        if (one.kind, one.size, one.target) != (other.kind, other.size, other.target):
            return False
        extents = (_Extent(self._fd, member.offset, member.size) for member in (one, other))
        return all(a == b for a, b in zip_longest(*map(pieces, extents)))

    def has(self, name: str) -> bool:
        found = self._find(name)
        return found is not None and found.kind is Kind.FILE

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[Source, int]]:
        found = self._find(name)
        if found is None or found.kind is not Kind.FILE:
            raise ArchiveError("the archive has no such file", entry=os.fsencode(name))
        yield _Extent(self._fd, found.offset, found.size), found.size

    def _find(self, name: str) -> _Member | None:
        """The member, links followed as far as they lead to members."""
        for _ in range(_HOPS):
            name = posixpath.normpath(name)
            if name in self._twice:
                raise ArchiveError("the archive has it twice", entry=os.fsencode(name))
            found = self._members.get(name)
            if found is None or found.kind not in (Kind.SYMLINK, Kind.HARDLINK):
                return found
            name = found.target
        raise ArchiveError("it is a link that leads nowhere", entry=os.fsencode(name))


class Directory:
    """A directory, by its descriptor, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def has(self, name: str) -> bool:
        try:
            os.close(self._open(name))
        except (OSError, ArchiveError):
            return False
        return True

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[Source, int]]:
        try:
            fd = self._open(name)
        except OSError as error:
            raise ArchiveError(f"it cannot be read: {error.strerror}", entry=os.fsencode(name)) from error
        with open(fd, "rb") as file:
            yield file, os.fstat(fd).st_size

    def _open(self, name: str) -> int:
        """Nothing is waited for: a fifo or a device in the place of a file is refused."""
        fd = files.openat2(self._fd, os.fsencode(name), os.O_RDONLY | os.O_NONBLOCK, resolve=_BENEATH)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ArchiveError(f"{shown(os.fsencode(name))} is no regular file")
        return fd
