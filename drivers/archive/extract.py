"""Extraction of a layer or root file system archive into one tree, and nowhere else.

    decompress -> Reader -> policy.admit -> Root (where) -> made, owned, dated here

An extraction that fails leaves what it had made so far: the caller owns the directory and throws it away.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple, TypeVar

from drivers.archive import policy
from drivers.archive.errors import ArchiveError, Refused, shown
from drivers.archive.layered import LayeredRoot, Onto
from drivers.archive.limits import DEFAULT, Limits
from drivers.archive.policy import Path, Step
from drivers.archive.pseudolinks import hidden_name
from drivers.archive.reader import Entry, Kind, Reader, Source
from drivers.archive.tree import Names
from drivers.archive.walk import Root
from unionfs.linux import files

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PAGE = 4096  # an aligned page of zeros in the file becomes a hole
_ZEROS = bytes(_PAGE)
_T = TypeVar("_T")


class Extracted(NamedTuple):
    """What an archive came to: bytes of file content, and entries."""

    size: int
    entries: int


def extract(stream: Source, target: int | Onto, *, limits: Limits = DEFAULT) -> Extracted:
    """Extract the uncompressed tar `stream` over what is in the `target`: below a directory, given by its descriptor,
    or into a directory of differences, on top of others (drivers.archive.layered).

    A directory over a directory changes its attributes; everything else is removed and made anew. Whiteouts remove what
    was below the root before, never what this archive brought. Directories get their times last.
    Needs root, and /proc for the attributes of things that cannot be opened. ArchiveError for everything that goes
    wrong, refusals of the file system included (no space, no extended attributes).
    """
    extraction = _Extraction(Root(target, limits) if isinstance(target, int) else LayeredRoot(target, limits), limits)
    try:
        for entry in (reader := Reader(stream, limits)):
            extraction.apply(entry, reader)
        extraction.finish()
    finally:
        extraction.close()
    return Extracted(extraction.size, extraction.entries)


def _sentence(error: OSError) -> str:
    said = error.strerror or str(error)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"{said}; free some space and try again"
        case errno.ENOTDIR:
            return "a part of its name is a file and not a directory"
        case errno.ENOTSUP:
            return f"{said}; the file system cannot store it, choose another one"
        case _:
            return said


class _Extraction:
    """The state of one extraction: the root, with what was made and the times still to be set, and the totals."""

    def __init__(self, root: Root, limits: Limits) -> None:
        self.root = root
        self.size = 0
        self.entries = 0
        self._limits = limits
        self._inheriting: tuple[Path, bool] | None = None  # the last directory asked for, and the answer
        self._overlay_whiteouts = Names(limits)
        self._pseudo_links: Path = (hidden_name(),)

    def close(self) -> None:
        self.root.close()

    def apply(self, entry: Entry, reader: Reader) -> None:
        self.entries += 1
        try:
            self._apply(entry, reader)
        except Refused as refused:
            raise entry.refuse(str(refused)) from None
        except OSError as error:
            raise entry.refuse(_sentence(error)) from error

    def _apply(self, entry: Entry, reader: Reader) -> None:
        step = policy.admit(entry, self._limits)
        if step is None:
            return
        if step.opaque:
            _, where = self.root.directory(step.path)
            self.root.remove_older(where)
        elif step.whiteout:
            self._white_out(step.path)
            if entry.kind is Kind.CHAR:
                self._overlay_whiteouts.add(step.path)
        elif step.pseudo and entry.kind is Kind.FILE:
            self._make(entry, Step((*self._pseudo_links, step.pseudo)), reader)
        else:
            self._make(entry, step, reader)

    def _white_out(self, path: Path) -> None:
        _, parent = self.root.directory(path[:-1])
        self.root.remove_older((*parent, path[-1]))

    def _make(self, entry: Entry, step: Step, reader: Reader) -> None:
        where: Path = ()
        if step.path:
            _, parent = self.root.directory(step.path[:-1])
            where = (*parent, step.path[-1])
        xattrs = policy.kept_xattrs(entry)
        match entry.kind:
            case Kind.FILE:
                self._file(entry, where, xattrs, reader.data())
                self.size += entry.size
            case Kind.HARDLINK:  # its attributes are those of the file it links to
                target = (*self._pseudo_links, step.pseudo) if step.pseudo else step.target
                if not self._hard_link(entry, where, target):
                    self._white_out(step.path)
                    self._overlay_whiteouts.add(step.path)
                    return
            case Kind.DIRECTORY:
                old = not self.root.make_directory(where)
                self._attributes(entry, where, xattrs, old=old)
                self.root.brought_directory(where).mtime_ns = entry.mtime_ns
                self._inheriting = None
                return
            case _:
                self._replace(where, lambda parent, name: _special(entry, parent, name))
                self._attributes(entry, where, xattrs)
        self.root.brought(where)

    def _replace(self, where: Path, make: Callable[[int, bytes], _T]) -> _T:
        """`make(parent descriptor, name)`, and once more when something was in the way and has been removed."""
        parent, _ = self.root.directory(where[:-1])
        try:
            return make(parent, where[-1])
        except FileExistsError:
            self.root.make_room(where)
        parent, _ = self.root.directory(where[:-1])
        return make(parent, where[-1])

    def _file(self, entry: Entry, where: Path, xattrs: dict[str, bytes], content: Iterable[bytes]) -> None:
        self.root.spent.write(entry.size)
        fd = self._replace(where, lambda parent, name: os.open(name, _NEW, 0o600, dir_fd=parent))
        try:
            position = written = 0
            for piece in content:
                written = _write(fd, piece, position) or written
                position += len(piece)
            if written != position:
                os.ftruncate(fd, position)  # it ends in a hole
            self._disinherit(fd, where, xattrs)
            # In this order: write(2) and chown(2) take setuid bits and file capabilities away.
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            for name, value in xattrs.items():
                os.setxattr(fd, name, value)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _hard_link(self, entry: Entry, where: Path, target: Path) -> bool:
        """False when the target is overlayfs's whiteout: overlayfs makes its whiteouts as hard links of one."""
        try:
            fd = self.root.find(target)
        except (FileNotFoundError, NotADirectoryError):
            if target in self._overlay_whiteouts:
                return False
            raise entry.refuse(f"it is a hard link to {shown(entry.linkname)}, which does not exist") from None
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise entry.refuse(f"it is a hard link to the directory {shown(entry.linkname)}")
            self._replace(where, lambda parent, name: files.link_fd(fd, parent, name))
        finally:
            os.close(fd)
        return True

    def _attributes(self, entry: Entry, where: Path, xattrs: dict[str, bytes], *, old: bool = False) -> None:
        """Set owner, mode, extended attributes and time of what is not open for writing, through an O_PATH descriptor:
        by name, a symbolic link could be followed. An `old` directory loses the attributes that `entry` lacks:
        image-spec layer.md, "the existing path's attributes MUST be replaced"."""
        fd = self.root.open(where, os.O_PATH | os.O_NOFOLLOW)
        try:
            path = files.fd_path(fd)
            if old:
                _remove_xattrs(path, (*os.listxattr(path), *policy.ACLS), xattrs)
            elif entry.kind is not Kind.SYMLINK:
                self._disinherit(path, where, xattrs)
            os.chown(path, entry.uid, entry.gid)
            if entry.kind is not Kind.SYMLINK:
                os.chmod(path, entry.mode)
            for name, value in xattrs.items():
                os.setxattr(path, name, value)
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _disinherit(self, file: int | bytes, where: Path, xattrs: dict[str, bytes]) -> None:
        """Take away what something new got by its directory's default ACL: the archive says all that it is to have."""
        parent = where[:-1]
        if self._inheriting is None or self._inheriting[0] != parent:
            fd, _ = self.root.directory(parent)
            self._inheriting = parent, _has_default_acl(fd)
        if self._inheriting[1]:
            _remove_xattrs(file, policy.ACLS, xattrs)

    def finish(self) -> None:
        if self.root.made.find(self._pseudo_links) is not None:
            self.root.make_room(self._pseudo_links)
        self._date_directories()

    def _date_directories(self) -> None:
        """Set the directories' times, now that nothing is made in them any more."""
        for path, directory in self.root.made.directories():
            if (mtime_ns := directory.mtime_ns) is None:
                continue
            try:
                fd = self.root.open((path,) if path else (), os.O_PATH | os.O_DIRECTORY)
                try:
                    os.utime(files.fd_path(fd), ns=(mtime_ns, mtime_ns))
                finally:
                    os.close(fd)
            except OSError as error:
                raise ArchiveError(_sentence(error), entry=path or b".") from error


def _special(entry: Entry, parent: int, name: bytes) -> None:
    if entry.kind is Kind.SYMLINK:
        os.symlink(entry.linkname, name, dir_fd=parent)
    elif entry.kind is Kind.FIFO:
        os.mkfifo(name, 0o600, dir_fd=parent)
    else:
        kind = stat.S_IFCHR if entry.kind is Kind.CHAR else stat.S_IFBLK
        os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent)


def _write(fd: int, piece: bytes, position: int) -> int:
    """Write those pages of `piece`, which belongs at `position`, that are not all zeros. Where the last of them ends,
    or 0 for none. What is not written is a hole."""
    last = begin = at = 0
    while at < len(piece):
        end = min(at + _PAGE - (position + at) % _PAGE, len(piece))
        if piece[at:end] == _ZEROS[: end - at]:
            last = _write_all(fd, piece[begin:at], position + begin) or last
            begin = end
        at = end
    return _write_all(fd, piece[begin:], position + begin) or last


def _write_all(fd: int, data: bytes, position: int) -> int:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written
    return position if data else 0


def _has_default_acl(fd: int) -> bool:
    try:
        return bool(os.getxattr(files.fd_path(fd), "system.posix_acl_default"))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def _remove_xattrs(file: int | bytes, names: Iterable[str], but: Container[str]) -> None:
    """Remove from a file those attributes of `names` that layers have. Absent ones are fine."""
    for name in names:
        if name not in but and policy.is_kept(os.fsencode(name)):
            try:
                os.removexattr(file, name)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                    raise
