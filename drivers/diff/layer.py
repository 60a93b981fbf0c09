"""What a walk finds, as the archive of a layer (OCI image-spec, layer.md).

What was decided, and why:
- Each thing deleted is a whiteout of its own, before its siblings. There are no opaque markers: producers SHOULD not
  write them (layer.md, "Opaque Whiteout"), and what a directory hides would have two forms, hence two digests.
- A file of several names is written at the first of them that changed, and the others are hard links to it: even those
  that the layer below has, so that an old and a new name stay one file. The order is the walk's, so there is one way.
- Sockets are left out, as Docker leaves them out: they are a process's, and nothing listens. Where one has taken the
  place of something, that is whited out. The same goes for a device 0:0 that has just taken the place of something
  (drivers.diff.forms lists none): it would be a whiteout to whoever reads the archive.
- Holes are written as zeros: sparse members SHOULD NOT be used. They cost no reading (SEEK_DATA), and drivers.archive
  makes holes of them again.
- Attributes: those that are kept (drivers.archive.policy), and no others.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing

from drivers.archive.reader import CHUNK, Entry, Kind
from drivers.archive.writer import Writer
from drivers.diff.change import Found, is_gone
from drivers.diff.compare import link_target, xattrs
from drivers.disk.trees import open_regular
from unionfs.linux.files import fd_path
from unionfs.union.form import PREFIX, is_overlay_whiteout

_KINDS = {
    stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK, stat.S_IFIFO: Kind.FIFO,
    stat.S_IFCHR: Kind.CHAR, stat.S_IFBLK: Kind.BLOCK,
}  # fmt: skip
_NOTHING = bytes(CHUNK)
_Identity = tuple[int, int]


def write(found: Iterable[Found], give: Callable[[bytes], object]) -> int:
    """Write the archive of `found` to `give`, piece by piece. Its size. OSError, ArchiveError for a path too long."""
    writer = Writer(give)
    with closing(members(found)) as entries:  # when `give` fails the file that is open must not stay so
        for entry, content in entries:
            writer.add(entry, content)
    writer.finish()
    return writer.size


def members(found: Iterable[Found]) -> Generator[tuple[Entry, Iterable[bytes]], None, None]:
    """The entries of the archive, and each one's content, to be read before the next entry is asked for."""
    written: dict[_Identity, bytes] = {}  # files with several names, and the name that each was written under
    unchanged: dict[_Identity, list[bytes]] = {}  # and those of which no name has changed so far
    for one in found:
        if one.status is None:
            yield _whiteout(one.path), ()
        elif stat.S_ISSOCK(one.status.st_mode) or is_overlay_whiteout(one.status):
            if one.kind == "C":
                yield _whiteout(one.path), ()
        elif stat.S_ISDIR(one.status.st_mode) or one.status.st_nlink == 1:
            for entry, content, _ in _whole(one):
                yield entry, content
        else:
            identity = (one.status.st_dev, one.status.st_ino)
            if identity in written:
                yield _link(one, written[identity]), ()
            elif one.kind == "=":
                unchanged.setdefault(identity, []).append(one.path)
            else:
                for entry, content, is_it in _whole(one):
                    yield entry, content
                    if is_it:
                        written[identity] = one.path
                        for path in unchanged.pop(identity, ()):
                            yield _link(one._replace(path=path), one.path), ()


def _whole(found: Found) -> Iterator[tuple[Entry, Iterable[bytes], bool]]:
    """The entry complete with its content, and whether it is still the file that was found, and not one that has
    replaced it; nothing if it has vanished."""
    status = found.status
    assert status is not None
    try:
        if stat.S_ISREG(status.st_mode):
            fd = open_regular(found.fd, found.name)
            try:
                now = os.fstat(fd)
                entry = _entry(found.path, now, xattrs(fd_path(fd), follow=True))
                yield entry, _content(fd, entry.size), os.path.samestat(status, now)
            finally:
                os.close(fd)
            return
        place, follow = found.place
        target = link_target(place) if stat.S_ISLNK(status.st_mode) else b""
        yield _entry(found.path, status, xattrs(place, follow=follow), target), (), True
    except OSError as error:
        if not is_gone(error):
            raise


def _entry(path: bytes, status: os.stat_result, attributes: dict[bytes, bytes], target: bytes = b"") -> Entry:
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    is_device = kind in (Kind.CHAR, Kind.BLOCK)
    return Entry(
        name=(path or b".") + b"/" if kind is Kind.DIRECTORY else path,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind is Kind.FILE else 0,
        mtime_ns=status.st_mtime_ns,
        linkname=target,
        major=os.major(status.st_rdev) if is_device else 0,
        minor=os.minor(status.st_rdev) if is_device else 0,
        xattrs=attributes,
        offset=0,
    )


def _link(found: Found, target: bytes) -> Entry:
    assert found.status is not None
    entry = _entry(found.path, found.status, {}, target)
    entry.kind, entry.size, entry.major, entry.minor = Kind.HARDLINK, 0, 0, 0
    return entry


def _whiteout(path: bytes) -> Entry:
    directory, slash, name = path.rpartition(b"/")
    hidden = directory + slash + PREFIX + name  # whatever its length: nothing is made of that name
    return Entry(hidden, Kind.FILE, 0o444, 0, 0, 0, 0, b"", 0, 0, {}, 0)


def _content(fd: int, size: int) -> Iterator[bytes]:
    """`size` bytes; holes are not read. It ends early when the file has become shorter."""
    position = 0
    while position < size:
        data = _next_data(fd, position, size)
        while position < data:
            yield _NOTHING[: min(CHUNK, data - position)]
            position += min(CHUNK, data - position)
        end = _next_hole(fd, position, size)
        while position < end:
            piece = os.pread(fd, min(CHUNK, end - position), position)
            if not piece:
                return
            yield piece
            position += len(piece)


def _next_data(fd: int, position: int, size: int) -> int:
    try:
        return min(os.lseek(fd, position, os.SEEK_DATA), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        if error.errno == errno.EINVAL:  # a file system that does not know its holes
            return position
        raise


def _next_hole(fd: int, position: int, size: int) -> int:
    if position >= size:
        return size
    try:
        return min(os.lseek(fd, position, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EINVAL):  # cut short since, or as above
            return size
        raise
