"""Extended attributes and file capabilities."""

from __future__ import annotations

import errno
import os

from tests.contracts.posix.case import USER, case, fails, in_child, put
from tests.trees import Dir, File, Special, Symlink

# vfs_cap_data of linux/capability.h, revision 2: cap_net_raw in the permitted set, effective bit on.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@case({"file": "x", "dir": {}}, needs=("user-xattr",))
def user_attributes(root: str) -> None:
    for path in (f"{root}/file", f"{root}/dir"):
        with fails(errno.ENODATA):
            os.getxattr(path, "user.none")
        with fails(errno.ENODATA):
            os.removexattr(path, "user.none")
        with fails(errno.ENODATA):
            os.setxattr(path, "user.none", b"", os.XATTR_REPLACE)
        os.setxattr(path, "user.a", b"one", os.XATTR_CREATE)
        with fails(errno.EEXIST):
            os.setxattr(path, "user.a", b"two", os.XATTR_CREATE)
        os.setxattr(path, "user.a", b"two", os.XATTR_REPLACE)
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.binary", bytes(range(256)))
        os.setxattr(path, "user.large", b"L" * 2000)
        assert os.getxattr(path, "user.a") == b"two"
        assert os.getxattr(path, "user.empty") == b""
        assert os.getxattr(path, "user.binary") == bytes(range(256))
        assert os.getxattr(path, "user.large") == b"L" * 2000
        listed = {name for name in os.listxattr(path) if name.startswith("user.")}
        assert listed == {"user.a", "user.empty", "user.binary", "user.large"}
        os.removexattr(path, "user.a")
        with fails(errno.ENODATA):
            os.getxattr(path, "user.a")


@case({"file": File("x", xattrs={"user.old": b"kept", "trusted.old": b"t"}), "dir": Dir({}, xattrs={"user.d": b"1"})},
      needs=("user-xattr",))
def attributes_that_were_there(root: str) -> None:
    assert os.getxattr(f"{root}/file", "user.old") == b"kept"
    assert os.getxattr(f"{root}/file", "trusted.old") == b"t"
    put(f"{root}/file", b"y", os.O_APPEND)
    put(f"{root}/dir/new", b"")
    assert os.getxattr(f"{root}/file", "user.old") == b"kept"
    assert os.getxattr(f"{root}/file", "trusted.old") == b"t"
    assert os.getxattr(f"{root}/dir", "user.d") == b"1"
    os.removexattr(f"{root}/file", "user.old")
    os.removexattr(f"{root}/dir", "user.d")
    assert not [name for name in os.listxattr(f"{root}/file") if name.startswith("user.")]
    with fails(errno.ENODATA):
        os.getxattr(f"{root}/dir", "user.d")


@case({"link": Symlink("file"), "fifo": Special(), "file": "x"}, needs=("user-xattr",))
def user_attributes_are_for_files_and_directories(root: str) -> None:
    with fails(errno.EPERM):
        os.setxattr(f"{root}/link", "user.a", b"1", follow_symlinks=False)
    with fails(errno.EPERM):
        os.setxattr(f"{root}/fifo", "user.a", b"1")
    os.setxattr(f"{root}/link", "user.a", b"1")
    assert os.getxattr(f"{root}/file", "user.a") == b"1"
    with fails(errno.EOPNOTSUPP):
        os.setxattr(f"{root}/file", "nonsense.a", b"1")


@case({"file": File("x", mode=0o666), "link": Symlink("file")})
def trusted_attributes(root: str) -> None:
    os.setxattr(f"{root}/file", "trusted.test", b"root's")
    assert os.getxattr(f"{root}/file", "trusted.test") == b"root's"
    assert "trusted.test" in os.listxattr(f"{root}/file")
    os.setxattr(f"{root}/link", "trusted.link", b"l", follow_symlinks=False)
    assert os.getxattr(f"{root}/link", "trusted.link", follow_symlinks=False) == b"l"
    with fails(errno.EPERM):
        in_child(lambda: os.setxattr(f"{root}/file", "trusted.test", b"mine"), uid=USER)
    os.removexattr(f"{root}/file", "trusted.test")
    assert "trusted.test" not in os.listxattr(f"{root}/file")


@case({"tool": File("x", mode=0o755, xattrs={"security.capability": CAPABILITY}),
       "tool2": File("x", mode=0o755, xattrs={"security.capability": CAPABILITY}), "plain": File("x", mode=0o755)})
def capabilities(root: str) -> None:
    """Writing to a file and changing its owner drop its capabilities; chmod and rename do not (capabilities(7))."""
    os.setxattr(f"{root}/plain", "security.capability", CAPABILITY)
    assert os.getxattr(f"{root}/plain", "security.capability") == CAPABILITY
    os.chmod(f"{root}/tool", 0o700)
    os.rename(f"{root}/tool", f"{root}/new")
    assert os.getxattr(f"{root}/new", "security.capability") == CAPABILITY
    put(f"{root}/new", b"changed", 0)
    with fails(errno.ENODATA):
        os.getxattr(f"{root}/new", "security.capability")
    os.chown(f"{root}/tool2", USER, USER)
    with fails(errno.ENODATA):
        os.getxattr(f"{root}/tool2", "security.capability")


@case({"file": File("x", mode=0o644)}, needs=("user-xattr",))
def who_may_set_attributes(root: str) -> None:
    with fails(errno.EACCES):
        in_child(lambda: os.setxattr(f"{root}/file", "user.a", b"1"), uid=USER)
    os.chmod(f"{root}/file", 0o666)
    in_child(lambda: os.setxattr(f"{root}/file", "user.a", b"1"), uid=USER)
    assert os.getxattr(f"{root}/file", "user.a") == b"1"
    with fails(errno.EPERM):
        in_child(lambda: os.setxattr(f"{root}/file", "security.test", b"1"), uid=USER)
