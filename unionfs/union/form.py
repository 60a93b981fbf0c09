"""What "deleted" and "opaque" look like on disk, and what names and attributes the union keeps for itself: the
vocabulary, and tests on what the caller has read already. No system call is made here; `opaque` reads the marks, and
`whiteout` makes and removes them.

AUFS form, read and written (aufs5 Documentation/filesystems/aufs; OCI image-spec layer.md):
    .wh.NAME         hides NAME in the branches below; empty, mode 0444, a hard link of .wh..wh.aufs where that is
                     possible and need not be synced
    .wh..wh.long.DIGEST
                     the same of a name of 252 to 255 bytes, for which `.wh.NAME` would be too long: ours, AUFS has no
                     such names
    .wh..wh..opq     in a directory: nothing below shines through
    .wh..wh.plnk/    pseudo-links (union/pseudolink)
    .wh..wh.orph/    work area
Overlayfs form, read, and but for one case not written (Documentation/filesystems/overlayfs.rst):
    character device 0:0                                     hides its own name; written beside our
                                                             `.wh..wh.long.DIGEST`, for who does not know that
    trusted.overlay.opaque=y or user.overlay.opaque=y        opaque directory
Our own form, written for the moment in which a directory has to be empty and opaque at once (rename over it), and
before the marker where that may come to the disk after what rests on it (union/order):
    trusted.unionfs.opaque=y (user.unionfs.opaque without CAP_SYS_ADMIN)
"""

from __future__ import annotations

import os
import stat

try:
    from _blake2 import blake2b  # what hashlib has, without the 4 MB of libcrypto that come with all it has
except ImportError:
    from hashlib import blake2b

PREFIX = b".wh."
OPAQUE = b".wh..wh..opq"
BASE = b".wh..wh.aufs"
PSEUDO_LINKS = b".wh..wh.plnk"
WORK_AREA = b".wh..wh.orph"

_LONG = b".wh..wh.long."

# Bytes of the longest name, and of the longest that its whiteout can have in its own.
NAME_MAX = 255
PREFIXED_MAX = NAME_MAX - len(PREFIX)

# Overlayfs's, without the mount option userxattr and with it.
OVERLAY_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
OPAQUE_ATTRIBUTES = frozenset({*OVERLAY_OPAQUE, "trusted.unionfs.opaque", "user.unionfs.opaque"})
_PRIVATE_ATTRIBUTES = (b"trusted.unionfs.", b"user.unionfs.", b"trusted.overlay.", b"user.overlay.")


def is_long(name: bytes) -> bool:
    """Whether the whiteout of `name` does not tell what it hides."""
    return len(name) > PREFIXED_MAX


def whiteout_of(name: bytes) -> bytes:
    if len(name) > PREFIXED_MAX:
        return _LONG + blake2b(name, digest_size=32).hexdigest().encode()
    return PREFIX + name


def is_reserved(name: bytes) -> bool:
    """Names the union keeps for itself: never listed, never found, refused with EPERM."""
    return name.startswith(PREFIX)


def is_private_attribute(name: bytes) -> bool:
    """Extended attributes that carry union state: hidden from the mount, and never copied from a branch."""
    return name.startswith(_PRIVATE_ATTRIBUTES)


def is_overlay_whiteout(entry: os.stat_result) -> bool:
    return stat.S_ISCHR(entry.st_mode) and entry.st_rdev == 0
