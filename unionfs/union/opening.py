"""Opening what a node is, and nothing else: who owns a branch may put another file in its place at any moment.

Three things must not happen, and none may be left to a look that comes before and a name that comes after it:

    the server waits     for the other end of a FIFO, for a tape, for who holds a lease, with the union's lock held
    a driver is called   opening a device can rewind, reset or read it, and the kernel lends what we opened
    another file is used than the one whose owner and mode the kernel checked before it asked us

So nothing is opened but with O_NOFOLLOW and O_NONBLOCK, what was opened is compared with the node, and O_TRUNC comes
after that. Where the branch is a mount of its own (union/branch.py) the kernel opens no device there (may_open_dev(),
fs/namei.c), and the name can be opened at once: a FIFO's other end may notice us for a moment, a socket is ENXIO. Where
it is not, the name is opened with O_PATH, which opens nothing, and the file by that descriptor.

Whoever asks for a file that is not there any more gets ESTALE, whatever is in its place: the kernel then looks the path
up again and finds that. A file under a lease gives EWOULDBLOCK, and its holder is told (fcntl(2)): see `again`.

Directories are opened with O_DIRECTORY, which opens nothing else. Of one that merges several branches the top one's is
compared; that is the one whose owner and mode are shown.
"""

from __future__ import annotations

import errno
import os

from unionfs.linux import files
from unionfs.union.errors import fail
from unionfs.union.nodes import Node

_ALWAYS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def at(dirfd: int, name: bytes, flags: int, node: Node) -> int:
    """A descriptor on the file `node`, which was `name` in `dirfd` when it was last looked up.

    Raises OSError: ESTALE, it is another file's name now, or nobody's; EWOULDBLOCK; and what open(2) gives for the file
    itself.
    """
    if node.source.private and not flags & os.O_TRUNC:
        try:
            fd = os.open(name, flags | _ALWAYS, dir_fd=dirfd)
        except OSError:
            pass  # of which file is told below
        else:
            try:
                if node.is_(os.fstat(fd)):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            fail(errno.ESTALE, name)
    looked_at = look_at(dirfd, name, node)
    try:
        return by(looked_at, flags)
    finally:
        os.close(looked_at)


def look_at(dirfd: int, name: bytes, node: Node) -> int:
    """The same with O_PATH: whatever is there, nobody notices."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dirfd)
    except FileNotFoundError:
        fail(errno.ESTALE, name)
    try:
        if node.is_(os.fstat(fd)):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    fail(errno.ESTALE, name)


def by(fd: int, flags: int) -> int:
    """The same of what `fd` is open on, which was compared with its node when `fd` was opened."""
    if not flags & os.O_TRUNC:
        return files.reopen(fd, flags)
    flags &= ~os.O_TRUNC
    if not flags & os.O_ACCMODE:
        flags |= os.O_RDWR  # the permissions that truncating takes (may_open(), fs/namei.c)
    opened = files.reopen(fd, flags)
    try:
        os.ftruncate(opened, 0)
    except BaseException:
        os.close(opened)
        raise
    return opened


def status(dirfd: int, name: bytes, node: Node) -> os.stat_result:
    """Of the file `node`, which was `name` in `dirfd` when it was last looked up. ESTALE if it is not any more."""
    try:
        entry = os.stat(name, dir_fd=dirfd, follow_symlinks=False)
    except FileNotFoundError:
        fail(errno.ESTALE, name)
    if node.is_(entry):
        return entry
    fail(errno.ESTALE, name)
