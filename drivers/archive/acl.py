"""POSIX ACLs: the bytes that the kernel keeps in system.posix_acl_*, and the words that some archives have instead.

    kernel    little-endian (include/uapi/linux/posix_acl_xattr.h): version 2, then per entry tag, permissions, id
    words     user::rw-,user:1234:r--,group::r--,mask::r--,other::r--  between commas or line ends (acl(5)); in pax
              records SCHILY.acl.access and SCHILY.acl.default. star and libarchive add the number behind a name:
              user:lisa:r--:1234. GNU tar does not, and a name alone means nothing here: users are not looked up
              (CVE-2019-14271).
"""

from __future__ import annotations

import struct

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_ACL_UNDEFINED_ID = 0xFFFFFFFF
_ENTRIES = 4096  # more than any file system takes

# linux/posix_acl.h
_ACL_USER_OBJ, _ACL_USER, _ACL_GROUP_OBJ, _ACL_GROUP, _ACL_MASK, _ACL_OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_TAGS = {
    b"user": (_ACL_USER_OBJ, _ACL_USER), b"u": (_ACL_USER_OBJ, _ACL_USER),
    b"group": (_ACL_GROUP_OBJ, _ACL_GROUP), b"g": (_ACL_GROUP_OBJ, _ACL_GROUP),
    b"mask": (_ACL_MASK, 0), b"m": (_ACL_MASK, 0), b"other": (_ACL_OTHER, 0), b"o": (_ACL_OTHER, 0),
}  # fmt: skip


def is_valid(value: bytes) -> bool:
    """Whether the kernel may be given these bytes; it looks at them again (posix_acl_valid())."""
    size = len(value) - _VERSION.size
    if size < 0 or size % _ENTRY.size or size > _ENTRIES * _ENTRY.size or _VERSION.unpack_from(value) != (2,):
        return False
    tags = {tag for tag, _, _ in _ENTRY.iter_unpack(value[_VERSION.size :])}
    needed = {_ACL_USER_OBJ, _ACL_GROUP_OBJ, _ACL_OTHER} | ({_ACL_MASK} if tags & {_ACL_USER, _ACL_GROUP} else set())
    return not tags or needed <= tags


def from_words(words: bytes) -> bytes | None:
    """The kernel's form, or None if it names somebody without a number. ValueError when it is not a list."""
    entries = []
    for line in words.replace(b",", b"\n").split(b"\n"):
        text = line.partition(b"#")[0].strip()
        if not text:
            continue
        tag, _, rest = text.partition(b":")
        # mask and other may be written with one colon
        who, permissions, number = _fields(rest) if tag not in (b"mask", b"m", b"other", b"o") else _last(rest)
        if tag not in _TAGS or len(permissions) != 3 or any(c not in b"rwx-" for c in permissions):
            raise ValueError("its access control list is damaged")
        own, named = _TAGS[tag]
        bits = sum(bit for letter, bit in zip(b"rwx", (4, 2, 1), strict=True) if letter in permissions)
        if not who:
            entries.append((own, bits, _ACL_UNDEFINED_ID))
        elif (digits := who if who.isdigit() else number).isdigit() and int(digits) < _ACL_UNDEFINED_ID:
            entries.append((named, bits, int(digits)))
        else:
            return None
    # The kernel wants them ordered by tag, and the named ones without duplicates.
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in sorted(entries))


def _fields(rest: bytes) -> tuple[bytes, bytes, bytes]:
    parts = [part.strip() for part in rest.split(b":")]
    if not 2 <= len(parts) <= 3:
        raise ValueError("its access control list is damaged")
    return parts[0], parts[1], parts[2] if len(parts) == 3 else b""


def _last(rest: bytes) -> tuple[bytes, bytes, bytes]:
    return b"", rest.strip().removeprefix(b":").strip(), b""
