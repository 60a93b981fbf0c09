"""Blobs on their way in, over a line that may break: <root>/incoming/HEX, and HEX.whole once all is there.

    receive():  flock HEX │ what a killed process left of it is hashed │ write …
    finish():   verify, fsync, rename to HEX.whole
    publish():  HEX.whole becomes a blob of the store, under the store's lock; when the index has it, it goes from here

Whoever receives a blob holds its flock; a second process that wants it waits, and finds it done. A killed one leaves
HEX, and the next goes on from there. Between finish() and publish() nobody holds HEX.whole, so whoever has received
anything holds a shared flock on the directory for as long as its store object lives: sweep(), which takes an exclusive
one, removes nothing under a process that is at work.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from drivers.disk import locks
from drivers.errors import TimedOut
from runtime.errors import ImageError
from runtime.images.blobs import Blobs, digest_of, hex_of

_WHOLE = ".whole"
_READ = 1 << 20
PATIENCE = 1800.0  # seconds: somebody else's layer of a gigabyte over a slow line


class Incoming:
    """One blob that is being received, by one thread. What is written is on disk in order, from byte 0 on."""

    def __init__(self, blobs: Blobs, path: str, digest: str, size: int, fd: int) -> None:
        """`fd`: of the file `path`, locked; -1 when the blob is there already."""
        self.digest, self.size = digest, size
        self._blobs, self._path, self._fd = blobs, path, fd
        self._hash = hashlib.sha256()
        self.position = 0
        if self.done:
            self.position = size
        else:
            self._catch_up()

    @property
    def done(self) -> bool:
        """The blob is there, whole and verified: nothing is to be written, and finish() need not be called."""
        return self._fd < 0

    def _catch_up(self) -> None:
        """Hash what is there. All of it and yet wrong: a process was killed just before it found out."""
        while piece := os.read(self._fd, _READ):
            self._hash.update(piece)
            self.position += len(piece)
        if self.position > self.size or (self.position == self.size and not self._is_right()):
            self.restart()

    def _is_right(self) -> bool:
        return f"sha256:{self._hash.hexdigest()}" == self.digest

    def write(self, data: bytes) -> None:
        """ImageError past `size`; OSError, and what was written before stays for the next one to go on with."""
        if self.position + len(data) > self.size:
            self.restart()
            raise ImageError(f"{self.digest[:19]} is longer than the {self.size} bytes that its manifest says")
        view = memoryview(data)
        while view:
            count = os.write(self._fd, view)
            self._hash.update(view[:count])
            self.position += count
            view = view[count:]

    def restart(self) -> None:
        """Forget what is there."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.position = 0

    def finish(self) -> None:
        """The blob is whole, durable and what its digest says. ImageError when it is not: cut short (what there is
        stays), or something else (nothing stays)."""
        if self.done:
            return
        if self.position < self.size:
            raise ImageError(f"{self.digest[:19]} is cut short, {self.size - self.position} bytes are missing")
        if not self._is_right():
            self.restart()
            raise ImageError(f"what came as {self.digest[:19]} has another digest: it was damaged or forged on its way")
        os.fsync(self._fd)
        os.rename(self._path, self._path + _WHOLE)
        os.close(self._fd)
        self._fd = -1

    def read(self) -> bytes:
        """All of a blob that is done, for a small one: a document. ImageError when it is damaged on disk."""
        try:
            with open(self._path + _WHOLE, "rb") as file:
                data = file.read()
        except FileNotFoundError:  # another process has published it since
            data = self._blobs.read(self.digest)
        if digest_of(data) != self.digest:
            raise ImageError(f"{self.digest[:19]} is damaged on disk; remove its image and get it again")
        return data

    def close(self) -> None:
        if not self.done:
            os.close(self._fd)


class Arrivals:
    """<root>/incoming of one store object. Thread-safe."""

    def __init__(self, root: str, blobs: Blobs) -> None:
        self._directory = os.path.join(root, "incoming")
        self._blobs = blobs
        self._guard = threading.Lock()
        self._session: weakref.finalize | None = None  # type: ignore[type-arg]  # guarded by _guard

    @contextmanager
    def receive(self, digest: str, size: int) -> Iterator[Incoming]:
        """See ImageStore.receive."""
        path = os.path.join(self._directory, hex_of(digest))
        self._join()
        incoming = self._open(path, digest, size)
        try:
            yield incoming
        finally:
            incoming.close()

    def _open(self, path: str, digest: str, size: int) -> Incoming:
        while True:
            if self._have(digest):
                return Incoming(self._blobs, path, digest, size, -1)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                locks.lock(fd, f"the blob {digest[:19]} that is being received", patience=PATIENCE)
                # It may be whole since we looked, and its file renamed; or it was swept away, and the name is free.
                if _is_at(fd, path) and not self._have(digest):
                    return Incoming(self._blobs, path, digest, size, fd)
                if _is_at(fd, path):
                    os.unlink(path)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _have(self, digest: str) -> bool:
        """Whether the blob is whole; it stays until we publish then, whatever is removed from the store meanwhile."""
        whole = self._whole(digest)
        try:
            os.link(self._blobs.path(digest), whole)
        except FileExistsError:
            return True
        except FileNotFoundError:
            return os.path.exists(whole)
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
        return True

    def _whole(self, digest: str) -> str:
        return os.path.join(self._directory, hex_of(digest) + _WHOLE)

    def open(self, digest: str) -> BinaryIO:
        """A blob that has arrived and is not published yet. FileNotFoundError."""
        return open(self._whole(digest), "rb")

    def publish(self, digest: str) -> bool:
        """Make the blob one of the store's, if it has arrived. The store's lock is held. It stays here as well, until
        settle(): what comes after may fail, and what was received is not to be lost with it."""
        try:
            self._blobs.link(self._whole(digest), digest)
        except FileNotFoundError:
            return False
        return True

    def settle(self) -> None:
        """What was received is published: remove the second names of the store's blobs, unless another process may be
        about to publish them too; then that one does it."""
        with self._alone() as directory_fd:
            if directory_fd is not None:
                with os.scandir(directory_fd) as entries:
                    names = [entry.name for entry in entries if entry.stat().st_nlink > 1]
                for name in names:
                    os.unlink(name, dir_fd=directory_fd)

    def _join(self) -> None:
        """Hold the shared lock from here on."""
        with self._guard:
            if self._session is not None:
                return
            os.makedirs(self._directory, 0o700, exist_ok=True)
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                locks.lock(fd, self._directory, shared=True)
            except BaseException:
                os.close(fd)
                raise
            self._session = weakref.finalize(self, os.close, fd)

    def leave(self) -> None:
        """Let go of the shared lock: all that was received is published, or given up."""
        with self._guard:
            if self._session is not None:
                self._session()
                self._session = None

    def size(self) -> int:
        """Bytes that are there, of blobs that the store does not have."""
        found = 0
        with suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # published or swept since it was listed
                    status = entry.stat()
                    found += status.st_size if status.st_nlink == 1 else 0
        return found

    def sweep(self) -> int:
        """Remove what nobody receives; the bytes that were freed. Nothing while some process receives an image."""
        with self._alone() as directory_fd:
            if directory_fd is None:
                return 0
            freed = self.size()
            for name in os.listdir(directory_fd):
                os.unlink(name, dir_fd=directory_fd)
            return freed

    @contextmanager
    def _alone(self) -> Iterator[int | None]:
        """The directory's descriptor with the exclusive lock, or None when another process receives an image, or
        nobody ever has. What we received ourselves is given up to be swept."""
        self.leave()
        fd = -1
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            locks.lock(fd, self._directory, patience=0)
        except (FileNotFoundError, TimedOut):
            if fd >= 0:
                os.close(fd)
            yield None
            return
        try:
            yield fd
        finally:
            os.close(fd)


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
