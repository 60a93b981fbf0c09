"""The directories of one driver, and how they begin and end.

    <root>/                     0700, as all below: layers hold set-id files (CVE-2021-41091)
        metadata.db             drivers.graph.store
        snapshots/
            identity            that of the store, so that another's directory is not taken for ours
            new-1f3a…/          being filled; its owner holds a flock on it
            17/                 the directory of the snapshot with id 17
            rm-1f3a…/           being deleted

                    rename, inside the                      rename, after the transaction
                    transaction that adds row 17            that deletes row 17
        new-1f3a… ────────────────────────────▶ 17 ────────────────────────────────────────▶ rm-5c07…

Rows decide. A number without a row is garbage as soon as no transaction is open, since only a transaction publishes;
`retire_all_but` is therefore called inside one. A `new-` or `rm-` is garbage as soon as nobody holds its flock, which
the kernel releases however its owner ends; whoever takes the lock may delete. So a crash between any two steps leaves
only garbage, and any process can tell garbage from work in progress.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from drivers.disk import trees
from drivers.disk.ownership import own_directory
from drivers.disk.trees import DIRECTORY
from drivers.errors import Unavailable

NEW, RETIRED, IDENTITY = "new-", "rm-", "identity"


class Staging:
    """A `new-` directory at `path` that this process fills. Given by Layout.staging()."""

    def __init__(self, layout: Layout, name: str, fd: int) -> None:
        self._layout = layout
        self.name = name
        self.path = layout.join(name)
        self.fd = fd
        self.published = False

    def publish(self, number: int) -> None:
        """Give the directory its number. To be called inside the transaction that adds the row, as its last step.

        What is in the directory must be durable before: a row is never committed for a directory that a power cut
        could empty.
        """
        layout, target = self._layout, str(number)
        # A crash between this rename and COMMIT leaves a directory whose number the next transaction is given again.
        layout.retire(number)
        os.fsync(self.fd)
        os.rename(self.name, target, src_dir_fd=layout.fd, dst_dir_fd=layout.fd)
        # From here on cleanup() decides by the row: if COMMIT fails we cannot know whether it reached the disk.
        self.published = True
        os.fsync(layout.fd)


class Layout:
    """The directories below `root`, which is made if missing. Any number of processes may use the same root.

    `delete(directory descriptor, name)` deletes one with all below it. Thread-safe: holds no state but a descriptor.
    Raises OSError; Unavailable for a directory that is not ours.
    """

    def __init__(
        self, root: str, delete: Callable[[int, str], None] = trees.delete, *, place: int | None = None
    ) -> None:
        """`place`, where `snapshots` is not in the root, is a descriptor of the directory that takes its place; it must
        stay open for longer than this object is in use."""
        self._delete = delete
        self.root = own_directory(root)
        self.path = os.path.join(self.root, "snapshots")
        if place is not None:
            self.path = f"/proc/self/fd/{place}"
        elif os.path.islink(self.path):
            raise Unavailable(f"{self.path} is a symbolic link: put back the directory that belongs here")
        else:
            own_directory(self.path)
        self.fd = os.open(os.path.join(self.path, "."), DIRECTORY)

    def close(self) -> None:
        """Twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def identity(self) -> str:
        """The identity of the store that the snapshots belong to; "" if none has been written."""
        try:
            fd = os.open(IDENTITY, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return ""
        try:
            return os.read(fd, 64).decode("ascii", "replace").strip()
        finally:
            os.close(fd)

    def set_identity(self, identity: str) -> None:
        """Write it, durably. To be called inside a write transaction: one at a time."""
        new = f"{IDENTITY}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=self.fd)
        try:
            os.write(fd, f"{identity}\n".encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, IDENTITY, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        os.fsync(self.fd)

    def join(self, *names: str | int) -> str:
        return os.path.join(self.path, *map(str, names))

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """A new empty directory, deleted when the `with` ends unless it was published."""
        name, fd = make_locked(self.fd, NEW)
        staging = Staging(self, name, fd)
        try:
            yield staging
        finally:
            try:
                if not staging.published:
                    self._delete(self.fd, name)
            finally:
                os.close(fd)

    def retire(self, number: int) -> str | None:
        """Take its number away from a directory; the new name is for discard(). None if there is no such directory."""
        name = RETIRED + _unique()
        try:
            os.rename(str(number), name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except FileNotFoundError:
            return None
        return name

    def remove(self, number: int) -> None:
        """Delete the directory of a snapshot that had a row, and so has a number that is never given again.

        A new name takes room, deleting does not: on a full disk it is deleted where it is.
        """
        try:
            name = self.retire(number)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            name = str(number)
        if name:
            self.discard(name)

    def retire_all_but(self, numbers: Collection[int], last: int) -> list[int]:
        """Retire every numbered directory that has no row. To be called inside a write transaction.

        Gives those for whose new name there was no room, if their numbers are up to `last` and so have had a row: for
        remove().
        """
        stuck = []
        for name in self._names():
            if name.isdecimal() and (number := int(name)) not in numbers:
                try:
                    self.retire(number)
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or number > last:
                        raise
                    stuck.append(number)
        return stuck

    def discard(self, name: str) -> None:
        """Delete a `new-` or `rm-` directory, unless somebody holds it; then they delete it."""
        delete_unheld(self.fd, name, self._delete)

    def sweep(self) -> None:
        """Delete everything that is retired, and everything new whose owner has died.

        What cannot be deleted does not keep the rest from going; the first failure is raised at the end.
        """
        failures = []
        for name in self._names():
            if name.startswith((NEW, RETIRED)):
                try:
                    self.discard(name)
                except OSError as error:
                    failures.append(error)
        if failures:
            raise failures[0]

    def newest(self) -> int:
        """The greatest number that a directory has, 0 if there is none."""
        return max((int(name) for name in self._names() if name.isdecimal()), default=0)

    def _names(self) -> list[str]:
        return os.listdir(self.path)  # not by the descriptor: threads would share its position

    def check_invariants(self, numbers: Collection[int]) -> None:
        """Exactly the snapshots' directories are here, and closed to others; for tests. Raises AssertionError."""
        found = set(self._names()) - {IDENTITY}
        assert found == set(map(str, numbers)), f"directories {sorted(found)}, rows {sorted(numbers)}"
        for path in (self.root, self.path, *map(self.join, numbers)):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o700, path


def has_snapshots(root: str) -> bool:
    """Whether any directory below `root` has the number of a snapshot."""
    try:
        return any(name.isdecimal() for name in os.listdir(os.path.join(root, "snapshots")))
    except FileNotFoundError:
        return False


def make_locked(parent_fd: int, prefix: str) -> tuple[str, int]:
    """Make an empty directory below `parent_fd` that delete_unheld() leaves alone: its name, and the descriptor that
    holds its flock, which the kernel releases however its owner ends."""
    while True:
        name = prefix + _unique()
        os.mkdir(name, 0o700, dir_fd=parent_fd)
        # Between mkdir and flock another process may take the directory for garbage and delete it, so check that what
        # we have locked is still there.
        try:
            fd = os.open(name, DIRECTORY, dir_fd=parent_fd)
        except FileNotFoundError:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _is_named(parent_fd, name, fd):
            return name, fd
        os.close(fd)


def delete_unheld(parent_fd: int, name: str, delete: Callable[[int, str], None] = trees.delete) -> None:
    """Delete the directory `name`, unless somebody holds its flock; then they delete it. Gone is fine."""
    try:
        fd = os.open(name, DIRECTORY, dir_fd=parent_fd)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between our look at the names and our lock its owner may have given it another one.
        if _is_named(parent_fd, name, fd):
            delete(parent_fd, name)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _is_named(parent_fd: int, name: str, fd: int) -> bool:
    """Whether the directory open as `fd` still has its name: it may have been deleted, or published."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=parent_fd, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _unique() -> str:
    return os.urandom(8).hex()
