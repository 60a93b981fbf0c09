"""Names inside one root: symbolic links resolved by hand, directories opened so that the kernel confines them.

Every directory is opened by openat2(2) from the root's descriptor with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, so no
link, `..`, absolute name or /proc magic link can lead out, even while somebody changes the tree. Works without chroot.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
import stat
from collections.abc import Callable

from drivers.archive.errors import Refused
from drivers.archive.limits import Limits, Spent
from drivers.archive.policy import Path
from drivers.archive.tree import FILE, Directory, Node, Tree, entries
from unionfs.linux import consts, files
from unionfs.union.form import is_reserved

_BENEATH = consts.RESOLVE_BENEATH | consts.RESOLVE_NO_SYMLINKS | consts.RESOLVE_NO_MAGICLINKS
_LINKS = 40  # MAXSYMLINKS of the kernel
_PARTS = 4096  # names on the way, those that links bring in counted
_DOTS = (b"", b".", b"..")

Link = tuple[int, bytes]  # how many names of a path lead to it, and its target


def canonical(path: Path, first_link: Callable[[Path], Link | None], spent: Spent) -> Path:
    """`path` with the symbolic links in it resolved as after chroot(2): an absolute one begins at the root, and above
    the root is the root. What does not exist counts as a directory to be made.

    `first_link` gives the first symbolic link of a path, None if there is none. Raises Refused for too many of them,
    and for one that leads through a `.wh.` name: policy refuses such names in entries, but stores a link's target.
    """
    pending = list(reversed(path))
    done: list[bytes] = []
    links, parts = 0, len(path)
    while pending:
        part = pending.pop()
        if part == b"..":
            del done[-1:]
        if part in _DOTS:
            continue
        if is_reserved(part):
            raise Refused("it goes through a '.wh.' name by a symbolic link")
        done.append(part)
        if len(done) > (depth := spent.limits.depth):
            raise Refused(f"it goes through symbolic links to more than {depth} directories in one another")
        if pending and pending[-1] not in _DOTS:
            continue  # names that follow one another are asked about together
        spent.look(len(done))
        if (link := first_link(tuple(done))) is None:
            continue
        length, target = link
        brought = target.split(b"/")
        links, parts = links + 1, parts + len(brought)
        if links > _LINKS:
            raise Refused(f"it goes through more than {_LINKS} symbolic links")
        if parts > _PARTS:
            raise Refused(f"it goes through symbolic links with more than {_PARTS} names")
        pending += (*reversed(done[length:]), *reversed(brought))
        del done[0 if target.startswith(b"/") else length - 1 :]
    return tuple(done)


def joined(path: Path) -> bytes:
    return b"/".join(path) or b"."


class Root:
    """The directories below `root_fd`, which stays the caller's. One directory is kept open: archives come in order.

    `made` has what exists because of this archive, by its canonical names, and `spent` what that took.
    """

    def __init__(self, root_fd: int, limits: Limits) -> None:
        self._root_fd = root_fd
        self._asked: Path | None = None  # the path by which the open directory was asked for
        self._path: Path = ()  # and where it is
        self._fd = -1
        self.made = Tree(limits)
        self.spent = Spent(limits)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._asked, self._fd = None, -1

    def directory(self, path: Path) -> tuple[int, Path]:
        """An O_PATH descriptor of the directory `path`, valid until the next call, and its canonical path.

        Missing directories are made. Raises Refused, ArchiveError for too many, or OSError: ENOTDIR, ENAMETOOLONG.
        """
        if self._fd >= 0 and path in (self._asked, self._path):
            return self._fd, self._path
        self.close()
        self.spent.look(len(path))
        try:
            fd = self.open(path, os.O_PATH | os.O_DIRECTORY)
            where = path
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOENT, errno.ENOTDIR):
                raise
            where = canonical(path, self._first_link, self.spent)
            self.made.directory(where, make=True)  # first: it may be one too many
            self._make(where)
            fd = self.open(where, os.O_PATH | os.O_DIRECTORY)
        self._asked, self._path, self._fd = path, where, fd
        self.made.directory(where, make=True)
        return fd, where

    def brought(self, where: Path) -> None:
        """Note that the archive has brought something that is not a directory under this canonical name."""
        self.made.put(self._parent(where), where[-1], FILE)

    def brought_directory(self, where: Path) -> Directory:
        return self.made.put_directory(self._parent(where), where[-1]) if where else self.made.root

    def _parent(self, where: Path) -> Directory:
        parent = self.made.directory(where[:-1], make=True)
        assert isinstance(parent, Directory)  # anything brought since in its place would be in the way on disk
        return parent

    def find(self, path: Path) -> int:
        """An O_PATH descriptor, the caller's, of whatever has the name `path`: if that is a symbolic link, of the link.

        Raises Refused, or OSError: ENOENT, ENOTDIR.
        """
        where = canonical(path[:-1], self._first_link, self.spent)
        return self.open((*where, *path[-1:]), os.O_PATH | os.O_NOFOLLOW)

    def open(self, path: Path, flags: int) -> int:
        """openat2(2) of a canonical path. ELOOP: a link on the way, or at its end without O_PATH|O_NOFOLLOW."""
        return files.openat2(self._root_fd, joined(path), flags, resolve=_BENEATH)

    def _first_link(self, path: Path) -> Link | None:
        # The kernel says that a link is on the way to a name, but not where: the longest prefix with none on its way
        # ends in it.
        beyond = bisect.bisect_left(range(1, len(path) + 1), True, key=lambda length: self._is_beyond(path[:length]))
        target = self._readlink(path[:beyond])
        return None if target is None else (beyond, target)

    def _is_beyond(self, path: Path) -> bool:
        """Whether a symbolic link is on the way to it; a link after something that is missing is not seen."""
        try:
            os.close(self.open(path, os.O_PATH | os.O_NOFOLLOW))
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOENT, errno.ENOTDIR):
                raise
            return error.errno == errno.ELOOP
        return False

    def _readlink(self, path: Path) -> bytes | None:
        try:
            fd = self.open(path, os.O_PATH | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return os.readlink(b"", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)

    def _make(self, path: Path) -> None:
        """mkdir -p of a canonical path, as docker makes the parents that an archive leaves out: owned by root, 0755."""
        fd = self.open((), os.O_PATH | os.O_DIRECTORY)
        try:
            for part in path:
                made = True
                try:
                    os.mkdir(part, 0o755, dir_fd=fd)
                except FileExistsError:
                    made = False
                below = files.openat2(fd, part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, resolve=_BENEATH)
                os.close(fd)
                fd = below
                if made:
                    os.chmod(files.fd_path(fd), 0o755)  # whatever the umask
        finally:
            os.close(fd)

    def make_directory(self, where: Path) -> bool:
        """Make the directory of this canonical name, 0700, in the place of whatever else had it. False if there was a
        directory already. The directory that it goes into exists."""
        if not where:
            return False
        parent, _ = self.directory(where[:-1])
        try:
            os.mkdir(where[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(where[-1], dir_fd=parent, follow_symlinks=False).st_mode):
                return False
            self.make_room(where)
            parent, _ = self.directory(where[:-1])
            os.mkdir(where[-1], 0o700, dir_fd=parent)
        return True

    def make_room(self, path: Path) -> None:
        """Remove what has the canonical name `path`, and what is below it: something else is to have the name. It is
        fine if nothing has it."""
        self._remove(path, None)

    def remove_older(self, path: Path) -> None:
        """Remove what has the canonical name `path`, and what is below it, but for what this archive has brought, and
        the directories that lead there. It is fine if nothing has the name."""
        self._remove(path, self.made.find(path))

    def _remove(self, path: Path, kept: Node | None) -> None:
        self.close()  # it may be the open directory, or a link on the way to it
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not path or self._is_directory(path):
                self._remove_directory(path, kept)
            elif kept is None:
                self._unlink(path)

    def _is_directory(self, path: Path) -> bool:
        parent = self.open(path[:-1], os.O_PATH | os.O_DIRECTORY)
        try:
            return stat.S_ISDIR(os.stat(path[-1], dir_fd=parent, follow_symlinks=False).st_mode)
        finally:
            os.close(parent)

    def _unlink(self, path: Path, remove: Callable[..., None] = os.unlink) -> None:
        parent = self.open(path[:-1], os.O_PATH | os.O_DIRECTORY)
        try:
            remove(path[-1], dir_fd=parent)
        finally:
            os.close(parent)

    def _remove_directory(self, path: Path, kept: Node | None) -> None:
        """Its contents go first. Without recursion, as an archive can nest two thousand directories by one name; memory
        holds the names on the way to one directory, and those of the directories still to be looked at beside it."""
        where = list(path)
        pending = [(kept, self._empty(path, kept))]
        while pending:
            kept, directories = pending[-1]
            if directories:
                where.append(directories.pop())
                below = None if kept is None or isinstance(kept, bytes) else entries(kept).get(where[-1])
                pending.append((below, self._empty(tuple(where), below)))
            else:
                pending.pop()
                if kept is None and where:
                    self._unlink(tuple(where), os.rmdir)
                del where[-1:]

    def _empty(self, path: Path, kept: Node | None) -> list[bytes]:
        """Remove the files of a directory, except those that are kept. The names of the directories in it."""
        stay = {} if kept is None or isinstance(kept, bytes) else entries(kept)
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as scan:
                found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in scan]
            for name, is_directory in found:
                if not is_directory and name not in stay:
                    os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)
        return [name for name, is_directory in found if is_directory]
