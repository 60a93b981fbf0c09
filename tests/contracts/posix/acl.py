"""POSIX access control lists, by their xattr form (linux/posix_acl_xattr.h); see acl(5)."""

from __future__ import annotations

import errno
import os
import struct

from tests.contracts.posix.case import OTHER, USER, case, content, fails, in_child, put
from tests.trees import Dir, File

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER_TAG, GROUP_OBJ, GROUP_TAG, MASK, OTHERS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_UNDEFINED = 0xFFFFFFFF


def acl(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    """Version 2 and (tag, permissions[, id]) entries, little endian, in the order that the kernel demands."""
    packed = [struct.pack("<HHI", e[0], e[1], e[2] if len(e) == 3 else _UNDEFINED) for e in entries]
    return struct.pack("<I", 2) + b"".join(packed)


FOR_USER = acl((USER_OBJ, 6), (USER_TAG, 6, USER), (GROUP_OBJ, 0), (MASK, 6), (OTHERS, 0))
HANDED_DOWN = acl((USER_OBJ, 7), (USER_TAG, 7, USER), (GROUP_OBJ, 5), (MASK, 7), (OTHERS, 0))


@case({"file": File("x", mode=0o600)})
def an_acl_lets_a_user_in(root: str) -> None:
    path = f"{root}/file"
    with fails(errno.EACCES):
        in_child(lambda: content(path), uid=USER)
    os.setxattr(path, ACCESS, FOR_USER)
    assert os.getxattr(path, ACCESS) == FOR_USER
    assert os.stat(path).st_mode & 0o777 == 0o660
    in_child(lambda: put(path, b"by the user"), uid=USER)
    assert content(path) == b"by the user"
    with fails(errno.EACCES):
        in_child(lambda: content(path), uid=OTHER)
    os.removexattr(path, ACCESS)
    with fails(errno.EACCES):
        in_child(lambda: content(path), uid=USER)


@case({"file": File("x", mode=0o600, xattrs={ACCESS: FOR_USER}), "dir": Dir({}, mode=0o700)})
def chmod_changes_the_mask(root: str) -> None:
    path = f"{root}/file"
    os.chmod(path, 0o640)
    assert os.getxattr(path, ACCESS) == acl((USER_OBJ, 6), (USER_TAG, 6, USER), (GROUP_OBJ, 0), (MASK, 4), (OTHERS, 0))
    assert in_child(lambda: content(path), uid=USER) == b"x"
    with fails(errno.EACCES):
        in_child(lambda: put(path, b"y"), uid=USER)


@case({"dir": Dir({}, mode=0o755)})
def a_minimal_acl_is_a_mode(root: str) -> None:
    os.setxattr(f"{root}/dir", ACCESS, acl((USER_OBJ, 7), (GROUP_OBJ, 4), (OTHERS, 1)))
    assert os.stat(f"{root}/dir").st_mode & 0o777 == 0o741
    with fails(errno.ENODATA):
        os.getxattr(f"{root}/dir", ACCESS)
    with fails(errno.ENODATA):
        os.getxattr(f"{root}/dir", DEFAULT)
    with fails(errno.EINVAL):
        os.setxattr(f"{root}/dir", ACCESS, acl((USER_OBJ, 7)))


@case({"dir": Dir({}, mode=0o777, xattrs={DEFAULT: HANDED_DOWN})})
def a_default_acl_is_handed_down(root: str) -> None:
    """Instead of the umask (acl(5), object creation and default ACLs)."""
    base = f"{root}/dir"

    def make() -> None:
        os.umask(0o077)
        put(f"{base}/file", b"x", mode=0o666)
        os.mkdir(f"{base}/sub", 0o777)
        os.mkfifo(f"{base}/fifo", 0o600)
        os.symlink("x", f"{base}/link")

    in_child(make)
    assert os.stat(f"{base}/file").st_mode & 0o777 == 0o660
    entries = ((USER_OBJ, 6), (USER_TAG, 7, USER), (GROUP_OBJ, 5), (MASK, 6), (OTHERS, 0))
    assert os.getxattr(f"{base}/file", ACCESS) == acl(*entries)
    assert os.getxattr(f"{base}/sub", ACCESS) == HANDED_DOWN
    assert os.getxattr(f"{base}/sub", DEFAULT) == HANDED_DOWN
    assert os.stat(f"{base}/sub").st_mode & 0o777 == 0o770
    assert os.stat(f"{base}/fifo").st_mode & 0o777 == 0o600
    in_child(lambda: put(f"{base}/file", b"y"), uid=USER)
    in_child(lambda: put(f"{base}/sub/below", b"y"), uid=USER)
    with fails(errno.EACCES):
        in_child(lambda: content(f"{base}/file"), uid=OTHER)


@case({"dir": Dir({"file": File("x", mode=0o640, xattrs={ACCESS: FOR_USER})}, xattrs={ACCESS: HANDED_DOWN,
                                                                                       DEFAULT: HANDED_DOWN})})
def acls_that_were_there_stay(root: str) -> None:
    put(f"{root}/dir/file", b"more", os.O_APPEND)
    os.chown(f"{root}/dir/file", OTHER, OTHER)
    put(f"{root}/dir/new", b"")
    assert os.getxattr(f"{root}/dir/file", ACCESS) == FOR_USER
    assert os.getxattr(f"{root}/dir", ACCESS) == HANDED_DOWN
    assert os.getxattr(f"{root}/dir", DEFAULT) == HANDED_DOWN
    in_child(lambda: put(f"{root}/dir/file", b"by the user"), uid=USER)
    os.removexattr(f"{root}/dir", DEFAULT)
    put(f"{root}/dir/later", b"")
    assert os.stat(f"{root}/dir/later").st_mode & 0o777 == 0o644
