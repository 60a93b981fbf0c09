"""The interpreter's file, out of the container's reach.

Until its execve a container's process is this interpreter, and an image can make itself it again (a command that is
a link to /proc/self/exe). /proc/PID/exe then leads a root that shares the host's user ids to the host's file, to be
overwritten once nobody runs it (CVE-2019-5736). So the process that creates containers runs its interpreter from a
detached read-only mount: the link leads there, and there nothing can be written, whoever asks.
"""

from __future__ import annotations

import fcntl
import os

from unionfs.linux import consts, mounts


def seal(path: str) -> int:
    """A descriptor of the file on a read-only mount that is in no mount namespace.

    For os.execve, or as /proc/self/fd/N for os.posix_spawn; the number is above those that file actions are about.
    """
    fd = mounts.open_tree(consts.AT_FDCWD, path, consts.OPEN_TREE_CLONE)
    try:
        mounts.mount_setattr(fd, b"", consts.AT_EMPTY_PATH, attr_set=consts.MOUNT_ATTR_RDONLY)
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
    finally:
        os.close(fd)
