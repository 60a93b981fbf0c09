"""The pty of a container: made in the container's own devpts, its slave its console, its master handed out."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from runtime.oci.inroot import Root
from unionfs.linux import consts, mounts


def open_pty(root: Root, size: tuple[int, int] | None, uid: int) -> tuple[int, int]:
    """(master, slave) descriptors of a new pty of the devpts at /dev/pts of `root`.

    The slave comes from the master's descriptor (TIOCGPTPEER, ioctl_tty(2)) and never from the name /dev/pts/N,
    which the image could have made a link (CVE-2025-52565).
    """
    master = root.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    try:
        status = os.fstat(master)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(5, 2):
            raise OSError(errno.ENODEV, "it is not a pty multiplexer", "/dev/pts/ptmx")
        fcntl.ioctl(master, consts.TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, consts.TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        if size is not None:
            fcntl.ioctl(master, consts.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        os.fchown(slave, uid, -1)  # so that a user other than root can open /dev/tty and /dev/stdout again
    except BaseException:
        os.close(master)
        raise
    return master, slave


def bind_console(root: Root, slave: int) -> None:
    """Make /dev/console the pty's slave."""
    target = root.file("/dev/console")
    try:
        mount_fd = mounts.open_tree(slave, b"", consts.OPEN_TREE_CLONE | consts.AT_EMPTY_PATH)
        try:
            root.attach(mount_fd, "/dev/console", target)
        finally:
            os.close(mount_fd)
    finally:
        os.close(target)


def control(slave: int) -> None:
    """Make the slave the controlling terminal of a new session, and standard input, output and error."""
    fcntl.ioctl(slave, consts.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(slave, fd)
    if slave > 2:
        os.close(slave)
