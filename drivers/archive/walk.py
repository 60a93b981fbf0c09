"""Names inside one root: symbolic links resolved by hand, directories opened so that the kernel confines them.

Every directory is opened by openat2(2) from the root's descriptor with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, so no
link, `..`, absolute name or /proc magic link can lead out, also while somebody changes the tree. Works without chroot.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Container, Iterator

from drivers.archive.errors import shown
from drivers.archive.policy import Path
from unionfs.linux import consts, files

_BENEATH = consts.RESOLVE_BENEATH | consts.RESOLVE_NO_SYMLINKS | consts.RESOLVE_NO_MAGICLINKS
_LINKS = 40  # MAXSYMLINKS of the kernel
_PARTS = 4096  # names on the way, those that links bring in counted


class Escape(Exception):
    """A symbolic link on the way that is not followed. str() says which."""


def canonical(path: Path, readlink: Callable[[Path], bytes | None]) -> Path:
    """`path` with the symbolic links in it resolved; what does not exist counts as a directory to be made.

    `readlink(prefix)` is the target of the symbolic link at `prefix`, None for anything else. Prefixes are asked for
    in their canonical form only. Escape: an absolute link, one that climbs above the root, or too many of them.
    """
    pending = list(reversed(path))
    done: Path = ()
    links = parts = 0
    origin = ""
    while pending:
        part = pending.pop()
        parts += 1
        if parts > _PARTS:
            raise Escape(f"it goes through symbolic links with more than {_PARTS} names")
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not done:
                raise Escape(f"it goes through {origin}, which leads above the root")
            done = done[:-1]
            continue
        target = readlink((*done, part))
        if target is None:
            done = (*done, part)
            continue
        links += 1
        origin = f"the symbolic link {shown(b'/'.join((*done, part)))} -> {shown(target)}"
        if target.startswith(b"/"):
            raise Escape(f"it goes through {origin}, which leads out of the root")
        if links > _LINKS:
            raise Escape(f"it goes through more than {_LINKS} symbolic links")
        pending += reversed(target.split(b"/"))
    return done


def joined(path: Path) -> bytes:
    return b"/".join(path) or b"."


class Root:
    """The directories below `root_fd`, which stays the caller's. One directory is kept open: archives come in order."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._asked: Path | None = None  # the path that the open directory was asked for by
        self._path: Path = ()  # and where it is
        self._fd = -1
        # Canonical names that exist because of this archive, and the directories that lead to them.
        self.made: set[bytes] = set()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._asked, self._fd = None, -1

    def directory(self, path: Path) -> tuple[int, Path]:
        """An O_PATH descriptor of the directory `path`, valid until the next call, and its canonical path.

        Missing directories are made. Escape, or OSError: ENOTDIR, ENAMETOOLONG.
        """
        if path == self._asked:
            return self._fd, self._path
        self.close()
        try:
            fd = self.open(path, os.O_PATH | os.O_DIRECTORY)
            where = path
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOENT):
                raise
            where = canonical(path, self._readlink) if error.errno == errno.ELOOP else path
            self._make(where)
            fd = self.open(where, os.O_PATH | os.O_DIRECTORY)
        self._asked, self._path, self._fd = path, where, fd
        # Invariant: with a name, every directory that leads to it is in `made`.
        for depth in range(len(where), -1, -1):
            if (name := joined(where[:depth])) in self.made:
                break
            self.made.add(name)
        return fd, where

    def find(self, path: Path) -> int:
        """An O_PATH descriptor, the caller's, of whatever has the name `path`: a symbolic link itself, at its end.

        Escape, or OSError: ENOENT, ENOTDIR.
        """
        where = canonical(path[:-1], self._readlink)
        return self.open((*where, *path[-1:]), os.O_PATH | os.O_NOFOLLOW)

    def open(self, path: Path, flags: int) -> int:
        """openat2(2) of a canonical path. ELOOP: a link on the way, or at its end without O_PATH|O_NOFOLLOW."""
        return files.openat2(self._root_fd, joined(path), flags, resolve=_BENEATH)

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
        """mkdir -p of a canonical path, as docker makes the parents that an archive leaves out: root's, mode 0755."""
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

    def remove(self, path: Path, keep: Container[bytes] = ()) -> None:
        """Remove the canonical `path` and what is below it, except the canonical names in `keep`.

        A kept name's parents must be kept too. Nothing there is fine.
        """
        self.close()  # it may be the open directory, or a link on the way to it
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if self._remove_file(path, keep):
                return
            self._remove_directory(path, keep)

    def _remove_file(self, path: Path, keep: Container[bytes]) -> bool:
        """True when it was no directory."""
        if not path:
            return False
        parent = self.open(path[:-1], os.O_PATH | os.O_DIRECTORY)
        try:
            if stat.S_ISDIR(os.stat(path[-1], dir_fd=parent, follow_symlinks=False).st_mode):
                return False
            if joined(path) not in keep:
                os.unlink(path[-1], dir_fd=parent)
            return True
        finally:
            os.close(parent)

    def _remove_directory(self, path: Path, keep: Container[bytes]) -> None:
        """Without recursion: an archive nests two thousand directories in one name."""
        pending, emptied = [path], []
        while pending:
            current = pending.pop()
            emptied.append(current)
            fd = self.open(current, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for name, is_directory in _listing(fd):
                    child = (*current, name)
                    if is_directory:
                        pending.append(child)
                    elif joined(child) not in keep:
                        os.unlink(name, dir_fd=fd)
            finally:
                os.close(fd)
        for current in reversed(emptied):
            if current and joined(current) not in keep:
                parent = self.open(current[:-1], os.O_PATH | os.O_DIRECTORY)
                try:
                    os.rmdir(current[-1], dir_fd=parent)
                finally:
                    os.close(parent)


def _listing(fd: int) -> Iterator[tuple[bytes, bool]]:
    """Names and whether they are directories, all read before the first is given."""
    with os.scandir(fd) as entries:
        found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    yield from found
