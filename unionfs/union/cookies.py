"""Cookies of a listing: what d_off, telldir(3) and seekdir(3) carry, within 31 bits, as off_t of a 32-bit program is.

Entries come in the order of a keyed hash of their names, and a cookie stands for a point in that order, which does not
depend on what else is in the directory: nothing that comes or goes can move what stays. The hash is Python's own for
bytes, signed 64 bits: SipHash under a key of the process, which cookies need not outlive.

The upper 30 bits of a hash are its *bucket*. The cookie of an entry that is the last of its bucket, and nearly all are
alone in theirs, is the bucket: whatever is in it was seen. Another entry gets the next number of a table that says
which hash it stands for. The table is the union's, for any directory, and nothing in it ever changes; so a cookie means
the same when the entry has gone, when others have come into its bucket, and when the kernel has forgotten the
directory. A million names take 460 numbers, ten thousand none. When the table is full, entries that would need a
number get cookies of 63 bits instead: as right, and 32-bit programs are told EOVERFLOW.

Two names of one hash, which a listing interrupted between them would make one, are expected once in 10^7 directories of
a million names.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import compress, count, islice
from operator import eq

# Smaller and larger than any hash.
BEFORE = -(1 << 63) - 1
LAST = (1 << 63) - 1

# Cookies of `.` and `..` are 1 and 2; 0 is the beginning.
_DOTS = 3
# Of the table, about 150 bytes each: what directories of 12 million names take.
_MOST_POINTS = 1 << 16

_BUCKET_BITS = 30
_SHIFT = 64 - _BUCKET_BITS
_FIRST_BUCKET = 1 << _BUCKET_BITS
_MIDDLE = _FIRST_BUCKET + (_FIRST_BUCKET >> 1)  # the bucket of hash 0

# Of the widest cookies, the hash but for its last bits, which there is no room for.
_WIDE = 1 << 62
_WIDE_SHIFT = 2
_WIDE_MIDDLE = _WIDE + (_WIDE >> 1)


class Cookies:
    """Guarded by Stack.lock."""

    def __init__(self) -> None:
        self._points = array("q")
        self._numbers: dict[int, int] = {}

    def of(self, names: Sequence[bytes], places: range) -> list[int]:
        """The cookies of those `names` that are at `places`, one after the other. Names are in the order of their
        hashes, and behind each are all others of its bucket."""
        last = places.stop + 1  # the next name says whether the last of these is the last of its bucket
        cookies = [(hashed >> _SHIFT) + _MIDDLE for hashed in map(hash, names[places.start : last])]
        for at in [*compress(count(), map(eq, cookies, islice(cookies, 1, None)))]:
            cookies[at] = self._within_bucket(hash(names[places.start + at]))
        return cookies[: len(places)]

    def _within_bucket(self, hashed: int) -> int:
        number = self._numbers.get(hashed)
        if number is None:
            if len(self._points) == _MOST_POINTS:
                return (hashed >> _WIDE_SHIFT) + _WIDE_MIDDLE
            number = self._numbers[hashed] = _DOTS + len(self._points)
            self._points.append(hashed)
        return number

    def point(self, cookie: int) -> int:
        """The hash up to which a listing that goes on from `cookie` was read: names with larger ones are still to
        come. From a number that was never given all are."""
        if cookie >= _WIDE:
            return (cookie - _WIDE_MIDDLE + 1 << _WIDE_SHIFT) - 1
        if cookie >= _FIRST_BUCKET:
            return (cookie - _MIDDLE + 1 << _SHIFT) - 1
        return self._points[cookie - _DOTS] if _DOTS <= cookie < _DOTS + len(self._points) else BEFORE


def end_of_bucket(hashed: int) -> int:
    """The largest hash in the bucket of this one."""
    return hashed | (1 << _SHIFT) - 1
