"""resolv.conf, hosts and hostname of a running container: files of a small file system in memory, its own.

As docker's they may be written to in the container, and they are outside of its layer, hence of its quota: as files of
the host's they could fill a disk that other things need, or its /run. The file system is mounted in the container's
namespace only, file by file (runtime.oci.newroot), and is gone with it; what it takes is charged to the container.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from unionfs.linux import consts, mounts

NAMES = ("resolv.conf", "hostname", "hosts")
_ROOM = 1 << 20  # bytes that a container may add
_ATTRIBUTES = consts.MOUNT_ATTR_NOSUID | consts.MOUNT_ATTR_NODEV | consts.MOUNT_ATTR_NOEXEC


class EtcFiles:
    """`fd` is the mount, at first in no namespace, with a file for each of NAMES at its top. Owns it."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        size = _ROOM + sum(len(_encoded(text)) for text in texts.values())
        data = (("mode", "755"), ("size", str(size)), ("nr_inodes", str(len(texts) + 1)))
        self.fd = mounts.new_mount("tmpfs", "tmpfs", data, _ATTRIBUTES)
        for name, text in texts.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        """In place: the container has it mounted. Nobody but us makes or renames anything beside it."""
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            file.write(_encoded(text))

    def close(self) -> None:
        os.close(self.fd)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
