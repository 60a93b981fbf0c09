"""Pseudo-links: hard links that stay one file after copy-up.

When a lower file with several names is copied up under one of them, the copy is also linked into .wh..wh.plnk/ of its
branch under a key made of the file's origin. A lower name that leads to the same origin is then served from there,
also after a remount and also when the branch has become a lower one. (aufs5 Documentation/filesystems/aufs, plink;
the key there is inode and branch number, which change between mounts.)

The link count that the union shows is kept in an attribute of the copy, in one of two ways: "=N" is N whatever links
the copy has, "+D" or "-D" is its own links and D (the names that exist only below, less the key). The first is written
before links are made that the union does not count, the second before those that it does: so the count is right after
a crash anywhere (overlayfs tells its two ways apart by L and U, ovl_nlink_start()).
"""

from __future__ import annotations

import contextlib
import os

from unionfs.linux import files
from unionfs.union import form
from unionfs.union.branch import Branch
from unionfs.union.identity import Origin

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class PseudoLinks:
    """Guarded by Stack.lock. Invariant: `_keys[i]` holds exactly the names in branch i's directory."""

    def __init__(self, branches: list[Branch]) -> None:
        self._branches = branches
        self._fds: dict[int, int] = {}
        self._keys: dict[int, set[bytes]] = {}
        for index in range(len(branches)):
            try:
                self._open(index)
            except OSError:
                continue  # none there, or something else under the reserved name

    def _open(self, index: int) -> None:
        fd = os.open(form.PSEUDO_LINKS, _DIRECTORY, dir_fd=self._branches[index].fd)
        try:
            self._keys[index] = set(os.listdir(files.fd_path(fd)))
        except BaseException:
            os.close(fd)
            raise
        self._fds[index] = fd

    def __bool__(self) -> bool:
        return bool(self._keys)

    def any_in(self, index: int) -> bool:
        return bool(self._keys.get(index))

    def fd(self, index: int) -> int:
        return self._fds[index]

    def find(self, origin: Origin, *, above: int) -> tuple[int, bytes, os.stat_result] | None:
        """(branch, key, status) of the copy of `origin` in the topmost branch above `above` that has one."""
        key = origin.encode()
        for index in sorted(self._keys):
            if index < above and key in self._keys[index]:
                return index, key, os.stat(key, dir_fd=self._fds[index], follow_symlinks=False)
        return None

    def key_of(self, origin: Origin, index: int, entry: os.stat_result) -> bytes | None:
        """The key under which the copy `entry` of `origin` is linked in branch `index`, if it is."""
        key = origin.encode()
        if key not in self._keys.get(index, ()):
            return None
        linked = os.stat(key, dir_fd=self._fds[index], follow_symlinks=False)
        return key if linked.st_ino == entry.st_ino else None

    def add(self, origin: Origin, unnamed_fd: int) -> bytes:
        """Link the finished copy of `origin` in the writable branch; its key."""
        if 0 not in self._fds:
            branch = self._branches[0]
            with branch.unseen(), contextlib.suppress(FileExistsError):
                os.mkdir(form.PSEUDO_LINKS, 0o700, dir_fd=branch.fd)
            self._open(0)
        key = origin.encode()
        files.link_fd(unnamed_fd, self._fds[0], key)
        self._keys[0].add(key)
        return key

    def link_into(self, key: bytes, dirfd: int, name: bytes) -> None:
        """Give the copy a name of its own in its branch, where so far only the key stood for it."""
        os.link(key, name, src_dir_fd=self._fds[0], dst_dir_fd=dirfd, follow_symlinks=False)

    def remove(self, key: bytes) -> None:
        os.unlink(key, dir_fd=self._fds[0])
        self._keys[0].discard(key)

    def count(self, index: int, key: bytes, links: int) -> int:
        """The link count that the union shows for a copy with so many `links` of its own."""
        recorded = self.recorded(index, key, links)
        return max(1, links - 1) if recorded is None else recorded

    def recorded(self, index: int, key: bytes, links: int) -> int | None:
        """The count as the attribute says it; None without one, as in a layer restored without attributes."""
        value = self._branches[index].read_attribute(files.fd_path(self._fds[index], key), "nlink")
        try:
            return None if value is None else int(value[1:]) if value.startswith(b"=") else links + int(value)
        except ValueError:
            return None

    def fix_count(self, key: bytes) -> None:
        """Keep the count over a change of the copy's links that the union does not show."""
        count = self.recorded(0, key, self._links(key))
        if count is not None:
            self._set_count(key, b"=%d" % count)

    def follow_links(self, key: bytes) -> None:
        """Let the count go up and down with the copy's links, as it must before a name is made or removed."""
        links = self._links(key)
        count = self.recorded(0, key, links)
        if count is not None:
            self._set_count(key, b"%+d" % (count - links))

    def _set_count(self, key: bytes, value: bytes) -> None:
        self._branches[0].write_attribute(files.fd_path(self._fds[0], key), "nlink", value)

    def _links(self, key: bytes) -> int:
        return os.stat(key, dir_fd=self._fds[0], follow_symlinks=False).st_nlink

    def sweep(self) -> None:
        """Remove the keys whose files have no name left: a server was killed between the last name and the key."""
        for key in list(self._keys.get(0, ())):
            count = self.recorded(0, key, self._links(key))
            if count is not None and count <= 0:
                self.remove(key)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._keys.clear()
