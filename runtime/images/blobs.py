"""Content by its digest: <root>/blobs/sha256/HEX, as in an OCI image layout (image-spec image-layout.md).

A blob is written as an unnamed file (O_TMPFILE), or received as a file elsewhere (runtime.images.incoming), made
durable, and then given its name: a writer that dies leaves nothing here, and a name always has the whole content.
Giving and taking names is done under the store's lock.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Container
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO

from drivers.disk import durable
from runtime.errors import ImageError
from unionfs.linux.files import link_fd

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FRESH = b".new"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def hex_of(digest: str) -> str:
    """ValueError when `digest` is not one: what a document names is never used as a path unseen (CVE-2014-9358)."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is no sha256 digest")
    return digest.removeprefix("sha256:")


class Blobs:
    """The blobs below `root`, which exists. Holds no descriptor; thread-safe."""

    def __init__(self, root: str) -> None:
        self._directory = os.path.join(root, "blobs", "sha256")
        durable.make_directories(self._directory)

    def path(self, digest: str) -> str:
        """ValueError."""
        return os.path.join(self._directory, hex_of(digest))

    def open(self, digest: str) -> BinaryIO:
        """FileNotFoundError, ValueError."""
        return open(self.path(digest), "rb")

    def read(self, digest: str) -> bytes:
        """A small blob, verified. FileNotFoundError; ValueError when it is not what its name says."""
        with self.open(digest) as file:
            data = file.read()
        if digest_of(data) != digest:
            raise ValueError(f"{digest} is damaged")
        return data

    def has(self, digest: str) -> bool:
        return os.path.exists(self.path(digest))

    def size(self, digest: str) -> int:
        return os.stat(self.path(digest)).st_size

    def add(self, data: bytes) -> str:
        """Store a small blob, and give its digest."""
        with self.writer() as writer:
            writer.write(data)
            return writer.publish()

    def writer(self) -> Writer:
        return Writer(self._directory)

    def link(self, path: str, digest: str) -> None:
        """Give the durable and verified file `path` a name here too. FileNotFoundError."""
        name = self.path(digest)
        fresh = name + os.fsdecode(_FRESH)
        try:
            os.link(path, fresh)
        except FileExistsError:  # of a process that died before the next call
            os.unlink(fresh)
            os.link(path, fresh)
        os.rename(fresh, name)
        if os.path.lexists(fresh):  # it had the name already: rename(2) does nothing for two names of one file
            os.unlink(fresh)

    def sync(self) -> None:
        """Make the names durable."""
        durable.sync_directory(self._directory)

    def sizes(self) -> dict[str, int]:
        """Bytes of each blob by its digest."""
        found = {}
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed since it was listed
                    found[f"sha256:{entry.name}"] = entry.stat().st_size
        return found

    def remove_all_but(self, kept: Container[str]) -> None:
        for name in os.listdir(self._directory):
            if f"sha256:{name}" not in kept:
                os.unlink(os.path.join(self._directory, name))


class Writer:
    """A blob that has no name yet. Without publish(), closing it is the end of it."""

    def __init__(self, directory: str) -> None:
        self._hash = hashlib.sha256()
        self.size = 0
        self._directory = directory
        try:
            self._fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):  # EISDIR: open(2), O_TMPFILE
                raise ImageError(
                    f"the file system of {directory} has no unnamed files (O_TMPFILE); choose another --root"
                ) from None
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """For reading again what was written: the offset is the caller's to set, and at the end to write on."""
        return self._fd

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def sync(self) -> None:
        """Make the content durable: outside of the lock, for it may take long."""
        os.fsync(self._fd)

    def publish(self) -> str:
        """Give the blob its name, and take the place of one that has it: that one may be damaged."""
        self.sync()
        name = os.fsencode(hex_of(self.digest))
        fresh = name + _FRESH
        directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                link_fd(self._fd, directory_fd, fresh)
            except FileExistsError:  # of a process that died between these two calls
                os.unlink(fresh, dir_fd=directory_fd)
                link_fd(self._fd, directory_fd, fresh)
            os.rename(fresh, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        finally:
            os.close(directory_fd)
        return self.digest
