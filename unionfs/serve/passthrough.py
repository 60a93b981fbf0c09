"""Which open files the kernel reads and writes by itself in a branch (FUSE_PASSTHROUGH), and which go through us.

The kernel's rule (fs/fuse/iomode.c): while a number has open files, all of them go through the page cache by our
READ and WRITE, or all of them by one and the same backing file. What breaks it fails with EIO, or, if the backing file
of before a copy-up is given for an open after it, goes to the wrong file. So:

    no open file, upper       passthrough
    no open file, lower       passthrough if it is lent at all (serve/lending.py), else through us
    open through us           through us: the data is read where it is, also after a copy-up, and stays coherent
    open by a backing file    by the same one, if the file is still there
    ... and copied up since   ESTALE, and the node is renumbered: the kernel looks the path up once more, finds the new
                              number (with the same st_ino) and opens that. The open files of the old number go on
                              with the lower file: what is written from then on they do not see.
    a second time ESTALE      the path leads to an open file itself (/proc/PID/fd), there is nothing to look up: opening
                              it for reading gets what that file has, for writing ESTALE.
    an old number, no open    as any number: some paths lead to it for ever (a bind mount of the file). The data is one,
    file                      in one page cache; what goes through us then goes by no cache, for there would be two.

Of a node with two numbers the kernel keeps no attributes under either: it would change one and not the other.

A lower file is safe from all of this whatever the kernel does: its branch is a read-only mount (union/branch.py), and a
backing file that is to be opened for writing there is refused with EROFS.

Set-ID bits. The kernel leaves it to us to clear them on a write (FUSE_HANDLE_KILLPRIV_V2: without it every write asks
for security.capability first) and a write that passes us by cannot. So a file of the writable branch that has them is
read and written through us if nobody has it open yet; and files of that branch are lent without CAP_FSETID, so that
its file system clears bits that were set later, on anybody's write, root's too. Nor do we see what is written through a
map, for which a file must be open for reading and writing, and which may outlive the descriptor. `attributes_valid`
says for how long the kernel may then keep attributes.

Backing files are kept for a while after the last close: the next open costs no system call. A small lower file that is
not lent goes into the kernel's cache whole before its first open is answered, while no copy-up of it can begin: then
nobody asks for its bytes, and no descriptor is opened for who opens it again.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

from unionfs.fuse.abi import FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_PASSTHROUGH
from unionfs.serve.filesystem import Filesystem
from unionfs.serve.lending import Lends
from unionfs.union.branch import Branch

# Bytes of a lower file that the kernel gets with its first open rather than when it asks: as many as it would ask for
# (read_ahead_kb, 128). To give them costs less than the request.
_MOST_GIVEN = 128 << 10

# Files that nobody has open and whose backing file is kept; each pins an inode of its branch.
_MOST_IDLE = 4096

# Seconds for which the kernel may keep attributes at most: a map that outlives its descriptor is a writer that nobody
# knows of.
_PERHAPS_MAPPED = 1

_WRITES = os.O_WRONLY | os.O_RDWR
_SET_ID = stat.S_ISUID | stat.S_ISGID
# What the branch's file system is to say yes to when somebody opens a file: it may be append-only or immutable.
_CHECKED = os.O_ACCMODE | os.O_APPEND


class Lender(Protocol):
    """The connection, for its backing files (unionfs/linux/fusedev.py)."""

    def lend(self, fd: int, *, writable: bool) -> int:
        """A backing id for the file `fd`; OSError when the kernel will not have it."""
        ...

    def take_back(self, backing_id: int) -> None: ...

    def give(self, number: int, content: bytes) -> None:
        """Have the kernel keep the whole content of the file `number` in its cache, if it will."""
        ...


class Opened(NamedTuple):
    """The fields of struct fuse_open_out, but for the handle."""

    flags: int
    backing_id: int


class Outdated(Exception):
    """The number has open files that are not where the file is now: ESTALE, and another number."""


# Of a node with two numbers.
_THROUGH_US_UNCACHED = Opened(FOPEN_DIRECT_IO, 0)
# The data survives a copy-up, and nobody else writes to the branches.
_THROUGH_US = Opened(FOPEN_KEEP_CACHE, 0)
# The kernel may have written to it by a backing file since its cache was filled.
_THROUGH_US_AFRESH = Opened(0, 0)


class _Use:
    """How the open files of one number do their I/O: by `backing_id` in `branch`, or through us if that is 0.
    `mappable`: it was open for reading and writing. `set_id`: it got set-ID bits since it was lent."""

    __slots__ = ("backing_id", "branch", "mappable", "opens", "set_id")

    def __init__(self, backing_id: int, branch: Branch) -> None:
        self.backing_id = backing_id
        self.branch = branch
        self.mappable = False
        self.opens = 0
        self.set_id = False


def _head(fd: int) -> bytes:
    try:
        return os.pread(fd, 4, 0)
    except OSError:  # EIO: who reads it is told
        return b""


class Passthrough:
    """Guarded by `_lock`, which is outside of Stack.lock: `_uses`, by number, of all that are open or kept,
    `_numbers`, by handle, of all that are open, and `_given`.

    Invariant: `_idle` holds exactly the numbers whose use has no open file; each has a backing id.
    """

    def __init__(
        self, fs: Filesystem, lender: Lender, *, lends: Lends, forget_attributes: Callable[[int], None]
    ) -> None:
        """`lends` is asked about lower files. `forget_attributes(number)` makes the kernel ask for them again."""
        self._fs = fs
        self._lender = lender
        self._lends = lends
        self._forget_attributes = forget_attributes
        self._lock = threading.Lock()
        self._uses: dict[int, _Use] = {}
        self._numbers: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._given: set[int] = set()  # lower files that are not lent, and were given when they were opened first
        self._refused: dict[int, int] = {}  # number -> the process that was sent to look up again

    def open(self, number: int, fh: int, flags: int, pid: int, *, mode: int | None = None) -> Opened:
        """How the file just opened as `fh` under `number` is read and written; `mode` is its st_mode, if it was just
        made. Raises Outdated, and OSError where the branch's file system refuses to open it (chattr +a, +i)."""
        with self._lock:
            use = self._uses.get(number)
            if use is not None and use.backing_id and use.branch is not self._fs.branch_of(fh):
                if use.opens:
                    return self._open_moved(number, fh, use, flags, pid)
                self._forget(number)
                use = None
            if self._refused:
                self._refused = {old: who for old, who in self._refused.items() if who != pid}
            if use is None:
                use = self._begin(number, fh, flags, mode)
            else:
                if flags & _WRITES and use.backing_id:
                    os.close(self._fs.open_again(fh, flags & _CHECKED)[0])
                if not use.opens:
                    del self._idle[number]
            if not use.backing_id and (use.branch.writable or use.branch.confined):
                self._open_now(number, fh, use)
            use.opens += 1
            self._numbers[fh] = number
            if not use.backing_id:
                if self._fs.has_two_numbers(number):
                    return _THROUGH_US_UNCACHED
                return _THROUGH_US if use.opens > 1 or not use.branch.writable else _THROUGH_US_AFRESH
            if flags & os.O_RDWR or (flags & _WRITES and use.set_id):
                use.mappable = use.mappable or bool(flags & os.O_RDWR)
                if mode is None:
                    self._forget_attributes(number)
            return Opened(FOPEN_PASSTHROUGH, use.backing_id)

    def _open_now(self, number: int, fh: int, use: _Use) -> None:
        """What goes through us gets its descriptor at once: later the file's mode may forbid it."""
        try:
            self._fs.descriptor(fh)
        except OSError:
            if not use.opens:
                del self._uses[number]
            raise

    def _open_moved(self, number: int, fh: int, use: _Use, flags: int, pid: int) -> Opened:
        """The file was copied up under its open files."""
        if self._refused.get(number) != pid:
            if not self._fs.has_two_numbers(number):
                self._fs.renumber(number)
                self._forget_attributes(number)
            self._refused[number] = pid
            raise Outdated
        del self._refused[number]
        if flags & (_WRITES | os.O_TRUNC):
            raise Outdated
        use.opens += 1
        self._numbers[fh] = number
        return Opened(FOPEN_PASSTHROUGH, use.backing_id)

    def _begin(self, number: int, fh: int, flags: int, mode: int | None) -> _Use:
        if mode is None and not self._fs.branch_of(fh).writable:
            lower = self._begin_lower(number, fh)
            if lower is not None:
                self._uses[number] = lower
                return lower
        if mode is None:
            fd, branch = self._fs.open_again(fh, flags & _CHECKED)
        else:
            fd, branch = self._fs.descriptor(fh)
        try:
            set_id = (os.fstat(fd).st_mode if mode is None else mode) & _SET_ID
            backing_id = 0 if set_id or branch.on_fuse else self._lend(fd, writable=True)
        finally:
            if mode is None:
                os.close(fd)
        if backing_id and mode is not None:
            self._fs.close_descriptor(fh)
        use = self._uses[number] = _Use(backing_id, branch)
        return use

    def _begin_lower(self, number: int, fh: int) -> _Use | None:
        """None if it was copied up just now."""
        if number in self._given:
            return _Use(0, self._fs.branch_of(fh))
        fd, branch = self._fs.descriptor(fh)
        if branch.writable:
            self._fs.close_descriptor(fh)
            return None
        if not branch.on_fuse and self._lends(_head(fd)) and (backing_id := self._lend(fd, writable=False)):
            self._fs.close_descriptor(fh)
            return _Use(backing_id, branch)
        self._give(number, fh, fd)
        return _Use(0, branch)

    def _lend(self, fd: int, *, writable: bool) -> int:
        """The backing id, or 0 on a file system that cannot be lent: stacked too deep, or without read_iter."""
        try:
            return self._lender.lend(fd, writable=writable)
        except OSError:
            return 0

    def _give(self, number: int, fh: int, fd: int) -> None:
        with self._fs.staying(fh) as stays:
            if stays:
                self._given.add(number)
                size = os.fstat(fd).st_size
                if 0 < size <= _MOST_GIVEN:
                    with contextlib.suppress(OSError):  # EIO: who reads it is told
                        content = os.pread(fd, size, 0)
                        if len(content) == size:
                            self._lender.give(number, content)

    def close(self, fh: int) -> None:
        """The open file `fh` is closed."""
        with self._lock:
            number = self._numbers.pop(fh)
            use = self._uses[number]
            use.opens -= 1
            if use.opens:
                return
            if not use.backing_id:
                del self._uses[number]
                return
            self._idle[number] = None
            if use.set_id:
                self._forget(number)
            elif len(self._idle) > _MOST_IDLE:
                self._forget(next(iter(self._idle)))

    def is_outdated(self, fh: int) -> bool:
        """Whether the kernel reads this open file elsewhere than where it is now."""
        with self._lock:
            use = self._uses.get(self._numbers.get(fh, 0))
            return use is not None and use.backing_id != 0 and use.branch is not self._fs.branch_of(fh)

    def forget(self, number: int) -> None:
        """The kernel has dropped the inode: what is kept for the next open would only hold the file's space."""
        # Unlocked: a number that is being opened is not being forgotten.
        self._given.discard(number)
        if number in self._uses or number in self._refused:
            with self._lock:
                self._refused.pop(number, None)
                if number in self._idle:
                    self._forget(number)

    def _forget(self, number: int) -> None:
        self._idle.pop(number, None)
        self._lender.take_back(self._uses.pop(number).backing_id)

    def got_set_id(self, number: int) -> None:
        """The file has set-ID bits from now on."""
        with self._lock:
            use = self._uses.get(number)
            if use is not None and use.backing_id:
                use.set_id = True
                if not use.opens:
                    self._forget(number)

    def attributes_valid(self, number: int, mode: int) -> int:
        """For how many seconds the kernel may keep the attributes of a file with this st_mode: not at all while writes
        that we do not see may change them."""
        use = self._uses.get(number)
        if use is None or not use.backing_id:
            return self._fs.keeps_for
        if use.opens and (use.mappable or mode & _SET_ID):
            return 0
        return _PERHAPS_MAPPED if use.mappable else self._fs.keeps_for

    @property
    def statistics(self) -> dict[str, int]:
        """Numbers open by a backing file, and backing files kept for the next open."""
        with self._lock:
            lent = sum(1 for use in self._uses.values() if use.backing_id)
            return {"lent": lent, "idle": len(self._idle)}

    def check_invariants(self) -> None:
        """AssertionError if the state contradicts itself; for tests."""
        with self._lock:
            opens = Counter(self._numbers.values())
            for number, use in self._uses.items():
                assert use.opens == opens[number], number
                assert (use.opens == 0) == (number in self._idle), number
                assert use.opens or use.backing_id, number
