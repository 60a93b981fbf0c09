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
    """Guarded by Stack.lock. Invariant: `_keys[branch]` holds exactly the names in the branch's directory.
    `branches` are top first."""

    def __init__(self, branches: list[Branch]) -> None:
        self._branches = branches
        self._fds: dict[Branch, int] = {}
        self._keys: dict[Branch, set[bytes]] = {}
        for branch in branches:
            try:
                self._open(branch)
            except OSError:
                continue  # none there, or something else under the reserved name

    def _open(self, branch: Branch) -> None:
        fd = os.open(form.PSEUDO_LINKS, _DIRECTORY, dir_fd=branch.fd)
        try:
            self._keys[branch] = set(os.listdir(files.fd_path(fd)))
        except BaseException:
            os.close(fd)
            raise
        self._fds[branch] = fd

    def __bool__(self) -> bool:
        return bool(self._keys)

    def any_in(self, branch: Branch) -> bool:
        return bool(self._keys.get(branch))

    def fd(self, branch: Branch) -> int:
        return self._fds[branch]

    def find(self, origin: Origin, *, above: Branch) -> tuple[Branch, bytes, os.stat_result] | None:
        """(branch, key, status) of the copy of `origin` in the topmost branch above `above` that has one."""
        key = origin.encode()
        for branch in self._branches:
            if branch is above:
                break
            if key in self._keys.get(branch, ()):
                return branch, key, os.stat(key, dir_fd=self._fds[branch], follow_symlinks=False)
        return None

    def key_of(self, origin: Origin, branch: Branch, entry: os.stat_result) -> bytes | None:
        """The key under which the copy `entry` of `origin` is linked in `branch`, if it is."""
        key = origin.encode()
        if key not in self._keys.get(branch, ()):
            return None
        linked = os.stat(key, dir_fd=self._fds[branch], follow_symlinks=False)
        return key if linked.st_ino == entry.st_ino else None

    def add(self, branch: Branch, origin: Origin, unnamed_fd: int) -> bytes:
        """Link the finished copy of `origin` in a writable branch; its key."""
        if branch not in self._fds:
            with branch.unseen(), contextlib.suppress(FileExistsError):
                os.mkdir(form.PSEUDO_LINKS, 0o700, dir_fd=branch.fd)
            self._open(branch)
        key = origin.encode()
        files.link_fd(unnamed_fd, self._fds[branch], key)
        self._keys[branch].add(key)
        return key

    def link_into(self, branch: Branch, key: bytes, dirfd: int, name: bytes) -> None:
        """Give the copy a name of its own in its branch, where so far only the key stood for it."""
        os.link(key, name, src_dir_fd=self._fds[branch], dst_dir_fd=dirfd, follow_symlinks=False)

    def remove(self, branch: Branch, key: bytes) -> None:
        os.unlink(key, dir_fd=self._fds[branch])
        self._keys[branch].discard(key)

    def count(self, branch: Branch, key: bytes, links: int) -> int:
        """The link count that the union shows for a copy with so many `links` of its own."""
        recorded = self.recorded(branch, key, links)
        return max(1, links - 1) if recorded is None else recorded

    def recorded(self, branch: Branch, key: bytes, links: int) -> int | None:
        """The count as the attribute says it; None without one, as in a layer restored without attributes."""
        value = branch.read_attribute(files.fd_path(self._fds[branch], key), "nlink")
        try:
            return None if value is None else int(value[1:]) if value.startswith(b"=") else links + int(value)
        except ValueError:
            return None

    def fix_count(self, branch: Branch, key: bytes) -> None:
        """Keep the count over a change of the copy's links that the union does not show."""
        count = self.recorded(branch, key, self._links(branch, key))
        if count is not None:
            self._set_count(branch, key, b"=%d" % count)

    def follow_links(self, branch: Branch, key: bytes) -> None:
        """Let the count go up and down with the copy's links, as it must before a name is made or removed."""
        links = self._links(branch, key)
        count = self.recorded(branch, key, links)
        if count is not None:
            self._set_count(branch, key, b"%+d" % (count - links))

    def _set_count(self, branch: Branch, key: bytes, value: bytes) -> None:
        branch.write_attribute(files.fd_path(self._fds[branch], key), "nlink", value)

    def _links(self, branch: Branch, key: bytes) -> int:
        return os.stat(key, dir_fd=self._fds[branch], follow_symlinks=False).st_nlink

    def sweep(self, branch: Branch) -> None:
        """Remove the keys whose files have no name left: a server was killed between the last name and the key."""
        for key in list(self._keys.get(branch, ())):
            count = self.recorded(branch, key, self._links(branch, key))
            if count is not None and count <= 0:
                self.remove(branch, key)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._keys.clear()
