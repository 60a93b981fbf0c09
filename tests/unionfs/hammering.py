"""What each of the processes does that hammer a union.

In `own<NUMBER>` one works alone, and does everything to the plain directory beside the mount as well: results must
agree at once and trees in the end. In `shared` all work at once; there nothing may happen but what comes of racing. All
append to `records`. What one writes to `durable<NUMBER>` it syncs, and only then says so in the file of that name
beside the mount.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
import zlib
from collections.abc import Collection, Iterator, Mapping

from tests.trees import Found, diff, read
from tests.unionfs.operations import RACES, SHORT, Choice, Doing, Operation, Side, describe

GONE = ("ENOTCONN", "ECONNABORTED")
SEED = 1000 * int(os.environ.get("HAMMER_SEED", "1"))
RECORD = 64


class Hammering(Doing):
    """What `Doing` has not, or not without a shell."""

    @staticmethod
    def append(side: Side, path: str, byte: int, size: int) -> object:
        with _opened(side.path(path), os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
            return os.write(fd, bytes([byte]) * size), os.lseek(fd, 0, os.SEEK_END)

    @staticmethod
    def write_mapped(side: Side, path: str, at: int, byte: int) -> object:
        with _opened(side.path(path), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
            size = os.fstat(fd).st_size
            if size == 0:
                return 0
            with mmap.mmap(fd, size) as memory:
                memory[at % size] = byte
                memory.flush()
            return size

    @staticmethod
    def fsync(side: Side, path: str) -> None:
        with _opened(side.path(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
            os.fsync(fd)

    @staticmethod
    def unlink_open(side: Side, path: str, byte: int, size: int) -> object:
        with _opened(side.path(path), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
            os.unlink(side.path(path))
            os.pwrite(fd, bytes([byte]) * size, 3)
            return os.pread(fd, 1 << 20, 0), describe(os.fstat(fd))


def apply(side: Side, operation: Operation) -> object:
    try:
        return getattr(Hammering, operation.name)(side, *operation.arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def choose(choice: Choice, *, mapped: bool) -> Operation:
    """`mapped`: also what a server that dies answers with SIGBUS."""
    pick = choice.random
    fate = pick.random()
    if fate < 0.08:
        return Operation("append", (choice.path(), *choice.data()))
    if fate < 0.13 and mapped:
        return Operation("write_mapped", (choice.path(), pick.randrange(5000), pick.randrange(256)))
    if fate < 0.16:
        return Operation("fsync", (choice.path(),))
    if fate < 0.2:
        return Operation("unlink_open", (choice.path(), *choice.data()))
    operation = choice.operation()
    if operation.name == "hold":
        # For reading alone it would go on with the lower file after a copy-up (unionfs/serve/passthrough.py).
        slot, path, _ = operation.arguments
        return Operation("hold", (slot, path, os.O_RDWR))
    return operation


class CutOff(Exception):
    """The server is gone; `operation`, if it is one, was done, or was not, or in part."""

    def __init__(self, operation: Operation | None = None) -> None:
        super().__init__()
        self.operation = operation


class Hammer:
    """One process's part. `home` has the mount `mnt`, the directory `plain`, and the files of what is durable."""

    def __init__(self, home: str, number: int, *, mapped: bool) -> None:
        self.number = number
        self.mapped = mapped
        self.mount = Side(f"{home}/mnt/own{number}")
        self.plain = Side(f"{home}/plain/own{number}")
        self.shared = Side(f"{home}/mnt/shared")
        self.durable = f"{home}/mnt/durable{number}"
        self.said = os.open(f"{home}/durable{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.records = os.open(f"{home}/mnt/records", os.O_WRONLY | os.O_APPEND)
        # Trees grow deep here, and of longer names paths would be too long.
        self.own = Choice(SEED + number, self.plain.root, sets_id=False, names=SHORT)
        self.any = Choice(SEED + 100 + number, self.shared.root, names=SHORT)
        self.log: list[str] = []
        self.operations = self.recorded = self.synced = 0

    def work(self, seconds: float) -> None:
        """Until the time is over; CutOff, and AssertionError for what should not be."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.operations % 8 == 0:
                self.own.look()
                self.record()
            if self.operations % 32 == 0:
                self.any.look()
                self.sync()
            self.step()
            self.race()
            self.operations += 1

    def step(self) -> None:
        operation = choose(self.own, mapped=self.mapped)
        found = apply(self.mount, operation)
        if found in GONE:
            raise CutOff(operation)
        wanted = apply(self.plain, operation)
        self.log = [*self.log[-20:], f"{operation} -> {wanted!r}"[:200]]
        if found != wanted:
            last = "\n".join(self.log)
            raise AssertionError(f"{str(found)[:300]} on the mount, {str(wanted)[:300]} expected; last:\n{last}")

    def race(self) -> None:
        operation = choose(self.any, mapped=self.mapped)
        found = apply(self.shared, operation)
        if found in GONE:
            raise CutOff
        if isinstance(found, str) and found in errno.errorcode.values() and found not in RACES:
            raise AssertionError(f"{operation} -> {found} where all work")

    def record(self) -> None:
        try:
            os.write(self.records, f"{self.number} {self.recorded}".encode().ljust(RECORD - 1) + b"\n")
        except OSError as error:
            raise CutOff from error
        self.recorded += 1

    def sync(self) -> None:
        content = f"{self.number}.{self.synced} ".encode() * (1 + self.synced * 37 % 2000)
        try:
            with _opened(f"{self.durable}/{self.synced}", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
                os.write(fd, content)
                os.fsync(fd)
            with _opened(self.durable, os.O_RDONLY | os.O_DIRECTORY) as fd:
                os.fsync(fd)
        except OSError as error:
            raise CutOff from error
        os.write(self.said, f"{self.synced} {zlib.crc32(content)}\n".encode())
        self.synced += 1

    def let_go(self) -> None:
        """Of all that is open in the mount."""
        for fd in (*self.mount.held.values(), *self.shared.held.values(), self.records):
            with contextlib.suppress(OSError):  # ENOTCONN
                os.close(fd)
        self.mount.held.clear()
        self.shared.held.clear()

    def differences(self, cut: Operation | None) -> list[str]:
        """Between this process's two trees, when `cut` was the last operation, or may have been. Of one that consists
        of several system calls some may have been done: then all else is compared."""
        found, before = read(self.mount.root, times=False), read(self.plain.root, times=False)
        wrong = diff(before, found)
        if not wrong or cut is None:
            return wrong
        touched = self._touched(cut, before, found)
        apply(self.plain, cut)
        if not diff(read(self.plain.root, times=False), found):
            return []
        wrong = diff(_without(before, touched), _without(found, touched))
        return [*wrong, f"after {cut}"] if wrong else []

    def _touched(self, operation: Operation, *trees: Mapping[str, Found]) -> set[str]:
        """What the operation works on, under all names."""
        held = self.plain.held.get(operation.arguments[0])
        names = [name for name in operation.arguments if isinstance(name, str)]
        root = os.path.realpath(self.plain.root)
        if held is not None:
            names.append(os.path.relpath(os.readlink(f"/proc/self/fd/{held}"), root))
        # A name may lead through a symbolic link, or be one that the operation follows.
        for name in tuple(names):
            parent, last = os.path.split(f"{root}/{name}")
            for led_to in (os.path.join(os.path.realpath(parent), last), os.path.realpath(f"{root}/{name}")):
                names.append(os.path.relpath(led_to, root))
        links = [tree[name].links or () for tree in trees for name in names if name in tree]
        return {*names, *(name for group in links for name in group)}


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _without(tree: Mapping[str, Found], names: Collection[str]) -> dict[str, Found]:
    return {name: found for name, found in tree.items() if name not in names}
