"""Inode numbers of a union whose branches are on one file system or on several: apart, and as small as can be.

A file's number is made of its inode number in the branch and of its file system's place among those of the branches,
bottom first, so that it is the same on every mount. On one file system it is the inode's own. On several, `xino` says
what it is (the word is overlayfs's, Documentation/filesystems/overlayfs.rst):

    auto  the place is in the uppermost of 32 bits, and a 32-bit program can use the number, as long as the inode fits
          beside it; else in the uppermost of 64. Two file systems leave 31 bits, four 30.
    on    always in the bits from 48 on. What is below is the inode, however many file systems there are.
    off   within 32 bits at any rate. Where the inode does not fit beside the place, the number is a digest. No two
          files that the kernel knows have one number; but where two digests are the same, who comes second gets another
          one, which may be a third on the next mount, or when the kernel has forgotten the file.

Within 32 bits the place is written backwards, first bit uppermost: a further file system then changes no number but of
those inodes that no longer fit. Files of a file system inside a branch have digests: of 64 bits, with `off` of 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Xino = Literal["auto", "on", "off"]

_FAR = 48
# So many file systems have a place in the 14 bits from there on; bits 62 and 63 say that there is none.
_MOST_PLACES = (1 << 14) - 1
_DIGEST = 1 << 63


class Numbers(NamedTuple):
    """Of the files of the file system `fsid`: `first | inode` of an inode below `room`; `far | inode` of another below
    2^48, if there is `far`; or else a digest, of which `mask` is shown, above `digests`."""

    fsid: int
    first: int
    room: int
    far: int | None
    digests: int
    mask: int

    def of(self, inode: int) -> int:
        return self.first | inode if inode < self.room else self.beyond(inode)

    def beyond(self, inode: int) -> int:
        """Of an inode that there is no room for."""
        if self.far is not None and inode >> _FAR == 0:
            return self.far | inode
        return self.digests | _digest(self.fsid, inode) & self.mask


class Numbering:
    """Immutable."""

    def __init__(self, fsids: Sequence[int], xino: Xino) -> None:
        """`fsids` are the file systems that branches are on, bottom first, each once."""
        places = len(fsids) + (xino == "off")  # the last is that of digests
        width = (places - 1).bit_length()
        room = 1 << (32 - width)
        self._digests = (_backwards(len(fsids)), room - 1) if xino == "off" else (_DIGEST, _DIGEST - 1)
        self._placed: dict[int, Numbers] = {}
        for place, fsid in enumerate(fsids):
            if place >= _MOST_PLACES:
                break
            if xino == "off":
                self._placed[fsid] = Numbers(fsid, _backwards(place), room, None, *self._digests)
            elif xino == "on" or places == 1:
                self._placed[fsid] = Numbers(fsid, place << _FAR, 1 << _FAR, None, *self._digests)
            else:
                self._placed[fsid] = Numbers(fsid, _backwards(place), room, place + 1 << _FAR, *self._digests)

    def of(self, fsid: int) -> Numbers:
        """Those of any file system: one that no branch is on has digests only."""
        return self._placed.get(fsid) or Numbers(fsid, 0, 0, None, *self._digests)


def _backwards(place: int) -> int:
    """With its lowest bit uppermost of 32."""
    return int(f"{place:032b}"[::-1], 2)


def _digest(fsid: int, inode: int) -> int:
    import hashlib  # it loads OpenSSL: 5 ms that every mount would pay

    digest = hashlib.blake2b(b"%x.%x" % (fsid, inode), digest_size=8).digest()
    return int.from_bytes(digest, "little")
