from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivers.archive.errors import ArchiveError, Refused
from drivers.archive.extract import Extracted, extract
from drivers.archive.limits import DEFAULT, Spent
from drivers.archive.validate import validate
from drivers.archive.walk import canonical
from tests.drivers.archive import tape
from tests.drivers.archive.tape import directory, file, hard_link, header, pax, symlink
from tests.trees import Dir, Entry, File, HardLink, Special, Symlink, Tree, assert_tree, build
from unionfs.linux import consts, mounts

Unpack = Callable[..., Extracted]
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+ep, version 2


def test_every_kind_of_entry(root: str, unpack: Unpack) -> None:
    done = unpack(
        directory(b"./", mode=0o700, mtime=10), directory(b"etc/", mode=0o755, uid=1, gid=2, mtime=20),
        file(b"etc/passwd", b"root\n", mode=0o640, gid=42, mtime=30),
        symlink(b"etc/mtab", b"/proc/mounts", uid=3, mtime=40),
        hard_link(b"etc/passwd-", b"etc/passwd"), header(b"run/fifo", b"6", mode=0o622, uid=9),
        header(b"dev/null", b"3", mode=0o666, major=1, minor=3), header(b"dev/tty", b"3", mode=0o620, gid=5, major=5),
        file(b"bin/su", b"x" * 10, mode=0o4755), file(b"bin/wall", mode=0o2755, gid=5), directory(b"tmp", mode=0o1777),
    )  # fmt: skip
    assert done == (15, 11)
    assert_tree(root, {
        "etc": Dir({
            "passwd": File("root\n", mode=0o640, uid=0, gid=42, mtime_ns=30 * 10**9),
            "passwd-": File("root\n", mode=0o640, gid=42, mtime_ns=30 * 10**9),
            "mtab": Symlink(target="/proc/mounts", uid=3, mtime_ns=40 * 10**9),
        }, mode=0o755, uid=1, gid=2),
        "run": Dir({"fifo": Special(mode=0o622, uid=9)}, mode=0o755, uid=0),
        "dev": {
            "null": Special(type=stat.S_IFCHR, rdev=os.makedev(1, 3), mode=0o666),
            "tty": Special(type=stat.S_IFCHR, rdev=os.makedev(5, 0), mode=0o620, gid=5),
        },
        "bin": {"su": File("x" * 10, mode=0o4755), "wall": File("", mode=0o2755, gid=5)},
        "tmp": Dir({}, mode=0o1777),
    })  # fmt: skip
    assert os.path.samefile(f"{root}/etc/passwd", f"{root}/etc/passwd-")
    assert [os.stat(f"{root}/{name}").st_mtime for name in (".", "etc")] == [10, 20]
    assert stat.S_IMODE(os.stat(root).st_mode) == 0o700


def test_parents_that_are_not_in_the_archive(root: str, unpack: Unpack) -> None:
    old = os.umask(0o077)
    try:
        unpack(file(b"a/b/c/d", mode=0o666))
    finally:
        os.umask(old)
    assert_tree(root, {"a": Dir({"b": Dir({"c": {"d": File(mode=0o666)}}, mode=0o755)}, mode=0o755, uid=0, gid=0)})


def test_times_to_the_nanosecond(root: str, unpack: Unpack) -> None:
    unpack(pax({b"mtime": b"1700000000.123456789"}), directory(b"d/"), pax({b"mtime": b"-1.5"}), file(b"d/f", b"x"))
    assert os.stat(f"{root}/d").st_mtime_ns == 1700000000123456789
    assert os.stat(f"{root}/d/f").st_mtime_ns == -1_500_000_000


def test_extended_attributes(root: str, unpack: Unpack) -> None:
    """What belongs to the machine where the archive was made is dropped: labels, trusted.*."""
    unpack(
        pax({
            b"SCHILY.xattr.security.capability": CAPABILITY, b"SCHILY.xattr.user.note": b"a\0b",
            b"SCHILY.xattr.security.selinux": b"system_u:object_r:bin_t:s0\0", b"SCHILY.xattr.trusted.mark": b"x",
            b"SCHILY.xattr.security.ima": b"x",
        }),
        file(b"ping", b"elf", mode=0o755, uid=5),
        pax({b"SCHILY.xattr.user.dir": b""}), directory(b"d/"),
    )  # fmt: skip
    assert {name: os.getxattr(f"{root}/ping", name) for name in os.listxattr(f"{root}/ping")} == {
        "security.capability": CAPABILITY, "user.note": b"a\0b",
    }
    assert os.listxattr(f"{root}/d") == ["user.dir"]


def test_an_attribute_that_the_kernel_refuses_is_named(unpack: Unpack) -> None:
    with pytest.raises(ArchiveError, match=r"^ping \(byte 1024\): Invalid argument"):
        unpack(pax({b"SCHILY.xattr.security.capability": b"junk"}), file(b"ping"))


NEW: dict[str, tuple[bytes, Tree]] = {
    "file": (file(b"x", b"new"), {"x": "new"}),
    "directory": (directory(b"x/", mode=0o711, uid=7), {"x": Dir({}, mode=0o711, uid=7)}),
    "link": (symlink(b"x", b"new"), {"x": Symlink(target="new")}),
    "hard link": (file(b"t", b"t") + hard_link(b"x", b"t"), {"t": "t", "x": HardLink("t")}),
    "fifo": (header(b"x", b"6"), {"x": Special()}),
}
OLD_DIRECTORY: Tree = {"a": {"b": "old"}, "c": Symlink(target="a")}
OLD: dict[str, dict[str, Entry]] = {
    "file": {"x": "old"},
    "link to a file": {"target": "old", "x": Symlink(target="target")},
    "link to a directory": {"target": {"inside": "old"}, "x": Symlink(target="target")},
    "dangling link": {"x": Symlink(target="nowhere")},
    "fifo": {"x": Special()},
    "socket": {"x": Special(type=stat.S_IFSOCK)},
    "directory": {"x": OLD_DIRECTORY},
}


@pytest.mark.parametrize("new", NEW)
@pytest.mark.parametrize("old", OLD)
def test_an_entry_takes_the_place_of_what_was_there(old: str, new: str, root: str, unpack: Unpack) -> None:
    """Removed and made anew, but for a directory over a directory; what a link led to is not touched."""
    build(root, OLD[old])
    part, tree = NEW[new]
    unpack(part)
    rest = {name: value for name, value in OLD[old].items() if name != "x"}
    if (old, new) == ("directory", "directory"):
        tree = {"x": Dir(OLD_DIRECTORY, mode=0o711, uid=7)}
    assert_tree(root, {**rest, **tree})


@pytest.mark.parametrize("new", NEW)
def test_the_same_within_one_archive(new: str, root: str, unpack: Unpack) -> None:
    part, tree = NEW[new]
    unpack(file(b"x", b"first"), part, file(b"x", b"second"), part)
    assert_tree(root, tree)


LOWER: Tree = {"etc": {"a": "a", "sub": {"b": "b"}, "link": Symlink(target="a")}, "keep": "k"}


def test_a_whiteout_removes_what_was_below(root: str, unpack: Unpack) -> None:
    build(root, LOWER)
    unpack(file(b"etc/.wh.a"), file(b"etc/.wh.sub"), file(b".wh.absent"), file(b"not/there/.wh.x"), file(b"new"))
    assert_tree(root, {"etc": {"link": Symlink(target="a")}, "keep": "k", "new": "", "not": {"there": {}}})


def test_whiteouts_as_aufs_makes_them_are_hard_links(root: str, unpack: Unpack) -> None:
    """tar of a branch: the second whiteout is a hard link to the first."""
    build(root, LOWER)
    unpack(file(b"etc/.wh.a", mode=0o444), hard_link(b"etc/.wh.sub", b"etc/.wh.a"))
    assert_tree(root, {"etc": {"link": Symlink(target="a")}, "keep": "k"})


@pytest.mark.parametrize("first", [True, False])
def test_a_whiteout_never_removes_what_the_archive_brings(first: bool, root: str, unpack: Unpack) -> None:
    build(root, LOWER)
    brings = [directory(b"etc/sub/"), file(b"etc/sub/new", b"n"), file(b"etc/a", b"new a")]
    hides = [file(b"etc/.wh.sub"), file(b"etc/.wh.a")]
    unpack(*(hides + brings if first else brings + hides))
    assert_tree(root, {"etc": {"a": "new a", "sub": {"new": "n"}, "link": Symlink(target="a")}, "keep": "k"})


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
def test_an_opaque_directory_wherever_its_mark_comes(place: int, root: str, unpack: Unpack) -> None:
    """image-spec layer.md: it is applied first, regardless of its position in the archive."""
    build(root, LOWER)
    parts = [directory(b"etc/", mode=0o700), file(b"etc/sub/new", b"n"), file(b"etc/a", b"new")]
    parts.append(symlink(b"etc/l", b"x"))
    parts.insert(place, file(b"etc/.wh..wh..opq"))
    unpack(*parts)
    etc: Tree = {"a": "new", "sub": {"new": "n"}, "l": Symlink(target="x")}
    assert_tree(root, {"etc": Dir(etc, mode=0o700), "keep": "k"})


def test_an_opaque_root(root: str, unpack: Unpack) -> None:
    build(root, LOWER)
    unpack(file(b".wh..wh..opq"), file(b"only"))
    assert_tree(root, {"only": ""})


def test_an_opaque_directory_named_through_a_link(root: str, unpack: Unpack) -> None:
    """What came in by one name is recognised under the other."""
    build(root, {"usr": {"lib": {"old": "o"}}, "lib": Symlink(target="usr/lib")})
    unpack(file(b"lib/new", b"n"), file(b"usr/lib/.wh..wh..opq"), file(b"usr/lib/more"), file(b"lib/.wh..wh..opq"))
    assert_tree(root, {"usr": {"lib": {"new": "n", "more": ""}}, "lib": Symlink(target="usr/lib")})


def test_a_link_that_is_gone_is_not_gone_through(root: str, unpack: Unpack) -> None:
    """The directory that is kept open between entries was reached through the link that the second entry removes."""
    os.symlink(".", f"{root}/a")
    unpack(file(b"a/first"), file(b"a/.wh.a"), file(b"a/second"))
    assert_tree(root, {"first": "", "a": {"second": ""}})


def test_overlayfs_whiteouts(root: str, unpack: Unpack) -> None:
    """An image that has another engine's layers: devices 0:0, and since Linux 5.8 hard links of one. What an archive
    brings under the name it keeps."""
    build(root, LOWER)
    parts = [
        header(b"etc/a", b"3"), hard_link(b"etc/sub", b"etc/a"), hard_link(b"keep", b"./etc/sub"), header(b"new", b"3"),
        file(b"new", b"n"), hard_link(b"new2", b"new"),
    ]  # fmt: skip
    assert unpack(*parts) == validate(tape.stream(*parts))
    assert_tree(root, {"etc": {"link": Symlink(target="a")}, "new": "n", "new2": HardLink("new")})


def test_pseudo_links_of_aufs(root: str, unpack: Unpack) -> None:
    """moby takes them since 2013 (pkg/archive/diff.go); unlike there, the links are links of one file again."""
    parts = [
        directory(b".wh..wh.plnk/"), file(b".wh..wh.plnk/92.51001", b"content", mode=0o4755, uid=7, mtime=99),
        file(b".wh..wh.plnk/93.1", b"x" * 300_000), hard_link(b"bin/a", b".wh..wh.plnk/92.51001"),
        hard_link(b"b", b"/.wh..wh.plnk/92.51001"), hard_link(b"c", b".wh..wh.plnk/93.1"), file(b"bin/a", b"other"),
        hard_link(b"bin/d", b".wh..wh.plnk/92.51001"),
    ]  # fmt: skip
    assert unpack(*parts) == validate(tape.stream(*parts))
    file_ = File("content", mode=0o4755, uid=7, mtime_ns=99 * 10**9)
    assert_tree(root, {"bin": {"a": "other", "d": file_}, "b": file_, "c": "x" * 300_000})
    unpack(*parts[:5])
    assert_tree(root, {"bin": {"a": file_, "d": file_}, "b": HardLink("bin/a"), "c": "x" * 300_000})


def test_a_pseudo_link_stays_one_file(root: str, unpack: Unpack) -> None:
    """Also when its first name has become another's, or all have."""
    link, target = b".wh..wh.plnk/1.1", b"x" * 5000
    parts = [
        file(link, target, mode=0o4755), hard_link(b"a", link), hard_link(b"b", b"a"), file(b"a", b"other"),
        hard_link(b"c", link), file(b"b"), file(b"c"), hard_link(b"d", link), hard_link(b"e", link),
        file(b".wh..wh..opq"), file(link, b"another"), hard_link(b"f", link), file(b".wh..wh.plnk/.wh.x", b"left out"),
    ]  # fmt: skip
    assert unpack(*parts) == validate(tape.stream(*parts))
    assert_tree(root, {
        "a": "other", "b": "", "c": "", "d": File(target, mode=0o4755), "e": HardLink("d"), "f": "another",
    })  # fmt: skip
    assert os.stat(f"{root}/d").st_nlink == 2


def test_pseudo_links_take_the_room_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file system of the target, without their zeros."""
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setattr(tempfile, "tempdir", None)
    link = b".wh..wh.plnk/1.1"
    parts = [file(link, os.urandom(1 << 20) + bytes(8 << 20) + b"x")]
    for number in range(8):
        parts += [hard_link(b"a", link), hard_link(b"b%d" % number, b"a"), file(b"a")]
    with _small(tmp_path, "1200k") as fd:
        assert extract(tape.stream(*parts), fd) == validate(tape.stream(*parts))
        assert sorted(os.listdir(fd)) == ["a", *(f"b{number}" for number in range(8))]
    says = r"^\.wh\.\.wh\.plnk/1\.1 \(byte 0\): No space left on device; free some space"
    with _small(tmp_path, "500k") as fd, pytest.raises(ArchiveError, match=says):
        extract(tape.stream(*parts), fd)


@contextlib.contextmanager
def _small(tmp_path: Path, size: str) -> Iterator[int]:
    """A descriptor of an empty file system with so much room."""
    target = tmp_path / "small"
    target.mkdir(exist_ok=True)
    mounts.mount("tmpfs", str(target), "tmpfs", 0, f"size={size},mode=755")
    try:
        fd = os.open(target, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        mounts.umount2(str(target))


def test_a_hard_link_to_what_lay_below(root: str, unpack: Unpack) -> None:
    build(root, LOWER)
    unpack(hard_link(b"keep2", b"keep"))
    assert os.stat(f"{root}/keep").st_ino == os.stat(f"{root}/keep2").st_ino


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with _small(tmp_path, "64k") as fd:
        says = r"^big \(byte 512\): No space left on device; free some space"
        with pytest.raises(ArchiveError, match=says) as caught:
            extract(tape.stream(directory(b"d/"), file(b"big", b"x" * (1 << 20))), fd)
        assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC



def test_a_disk_that_is_full_at_any_entry(tmp_path: Path) -> None:
    """Each thing that is made fails once; nothing is left open, or the disk could not be unmounted."""
    target = tmp_path / "small"
    target.mkdir()
    parts = (
        file(b"implied/parent/f", b"x"), directory(b"d/"), symlink(b"d/s", b"t" * 3000), header(b"d/p", b"6"),
        header(b"null", b"3", major=1, minor=3), hard_link(b"h", b"implied/parent/f"), file(b"d", b"replaced"),
    )  # fmt: skip
    said: set[object] = set()
    for inodes in range(2, 12):
        mounts.mount("tmpfs", str(target), "tmpfs", 0, f"nr_inodes={inodes}")
        try:
            fd = os.open(target, os.O_RDONLY)
            try:
                said.add(extract(tape.stream(*parts), fd))
            except ArchiveError as error:
                assert "No space left on device; free some space" in str(error)
                said.add(error.entry)
            finally:
                os.close(fd)
        finally:
            mounts.umount2(str(target))
    assert said >= {b"implied/parent/f", b"d/", b"d/s", b"d/p", b"null", (9, 7)}


def test_a_read_only_root_is_one_line(root: str, tmp_path: Path) -> None:
    tree = mounts.open_tree(consts.AT_FDCWD, root, consts.OPEN_TREE_CLONE)
    try:
        mounts.mount_setattr(tree, "", consts.AT_EMPTY_PATH, attr_set=consts.MOUNT_ATTR_RDONLY)
        with pytest.raises(ArchiveError, match=r"^a \(byte 0\): Read-only file system"):
            extract(tape.stream(file(b"a")), tree)
    finally:
        os.close(tree)


def test_canonical_names() -> None:
    links = {
        (b"lib",): b"usr/lib", (b"usr", b"lib", b"up"): b"..", (b"a",): b"./b//", (b"b",): b"c",
        (b"out",): b"usr/../..", (b"var", b"run"): b"/run", (b"a1",): b"a2", (b"a2",): b"/a1",
    }  # fmt: skip

    def first_link(path: tuple[bytes, ...]) -> tuple[int, bytes] | None:
        lengths = range(1, len(path) + 1)
        return next(((length, links[path[:length]]) for length in lengths if path[:length] in links), None)

    def resolve(name: bytes) -> bytes:
        return b"/".join(canonical(tuple(name.split(b"/")), first_link, Spent(DEFAULT)))

    assert resolve(b"lib/x") == b"usr/lib/x"
    assert resolve(b"lib/up/y") == b"usr/y"
    assert resolve(b"a/z") == b"c/z"
    assert resolve(b"missing/z") == b"missing/z"
    assert resolve(b"a") == b"c"
    assert resolve(b"usr/./lib/..//up/../../lib/up/lib") == b"usr/lib"
    assert resolve(b"out/x") == b"x"
    assert resolve(b"var/run/app") == b"run/app"
    assert resolve(b"var/run/../x") == b"x"
    with pytest.raises(Refused, match="more than 40 symbolic links"):
        resolve(b"a1/x")


ACL = bytes.fromhex("02000000 01000600ffffffff 02000400d2040000 04000400ffffffff 10000400ffffffff 20000400ffffffff")
WORDS = b"user::rw-,user:1234:r--,group::r--,mask::r--,other::r--"
BY_NAME = b"user::rw-\nuser:lisa:r--:1234\ngroup::r--\nmask::r--\nother::r--\n"
GNU = b"user::rw-\nuser:lisa:r--\ngroup::r--\nmask::r--\nother::r--\n"


@pytest.mark.parametrize(
    "records",
    [
        {b"SCHILY.xattr.system.posix_acl_access": ACL}, {b"SCHILY.acl.access": WORDS}, {b"SCHILY.acl.access": BY_NAME},
        {b"SCHILY.xattr.system.posix_acl_access": ACL, b"SCHILY.acl.access": GNU},
    ],
    ids=["raw", "words", "star's words", "both"],
)  # fmt: skip
def test_access_control_lists(records: dict[bytes, bytes], root: str, unpack: Unpack) -> None:
    unpack(pax(records), file(b"f", b"x", mode=0o644, uid=7))
    assert os.getxattr(f"{root}/f", "system.posix_acl_access") == ACL
    assert stat.S_IMODE(os.stat(f"{root}/f").st_mode) == 0o644


def test_an_access_control_list_of_names_only(root: str, unpack: Unpack) -> None:
    """Users are not looked up (CVE-2019-14271); what is left is the mode."""
    unpack(pax({b"SCHILY.acl.access": GNU}), file(b"f", mode=0o640))
    assert os.listxattr(f"{root}/f") == []


def test_nothing_inherits_what_the_archive_does_not_say(root: str, unpack: Unpack) -> None:
    """A default ACL in the archive, or of a directory that was there before."""
    build(root, {"old": {}})
    os.setxattr(f"{root}/old", "system.posix_acl_default", ACL)
    default = {b"SCHILY.xattr.system.posix_acl_default": ACL}
    parts = [pax(default), directory(b"new/")]
    for start in (b"old/", b"new/"):
        parts += [
            file(start + b"f", b"x", mode=0o666), directory(start + b"d/", mode=0o777),
            header(start + b"p", b"6", mode=0o666), symlink(start + b"l", b"x"),
            pax(default), directory(start + b"e/"),
        ]  # fmt: skip
    unpack(*parts, directory(b"clean/"), file(b"clean/f"))
    for place in ("old", "new"):
        for name in ("f", "d", "p"):
            assert os.listxattr(f"{root}/{place}/{name}") == []
        modes = [stat.S_IMODE(os.stat(f"{root}/{place}/{name}").st_mode) for name in ("f", "d", "p")]
        assert modes == [0o666, 0o777, 0o666]
        assert os.listxattr(f"{root}/{place}/e") == ["system.posix_acl_default"]
    assert os.getxattr(f"{root}/old", "system.posix_acl_default") == ACL


def test_an_old_directory_has_then_what_the_entry_has(root: str, unpack: Unpack) -> None:
    """image-spec layer.md: the existing path's attributes MUST be replaced by those of the entry."""
    build(root, {"d": Dir({"f": "x"}, xattrs={"user.old": b"1", "user.both": b"1", "system.posix_acl_default": ACL})})
    unpack(pax({b"SCHILY.xattr.user.both": b"2", b"SCHILY.xattr.user.new": b"3"}), directory(b"d/", mode=0o711))
    assert_tree(root, {"d": Dir({"f": "x"}, mode=0o711, xattrs={"user.both": b"2", "user.new": b"3"})})


def test_devices(root: str, unpack: Unpack) -> None:
    unpack(
        header(b"sda", b"4", mode=0o660, gid=6, major=8), header(b"mem", b"3", mode=0o640, major=1, minor=1),
        header(b"big", b"4", mode=0o600, major=4095, minor=(1 << 20) - 1),
    )  # fmt: skip
    assert_tree(root, {
        "sda": Special(type=stat.S_IFBLK, rdev=os.makedev(8, 0), mode=0o660, gid=6),
        "mem": Special(type=stat.S_IFCHR, rdev=os.makedev(1, 1), mode=0o640),
        "big": Special(type=stat.S_IFBLK, rdev=os.makedev(4095, (1 << 20) - 1), mode=0o600),
    })  # fmt: skip


@pytest.mark.parametrize(
    ("data", "blocks"),
    [
        (bytes(1 << 20), 0), (b"x" + bytes(1 << 20), 4096), (bytes(1 << 20) + b"x", 4096), (bytes(4095) + b"x", 4096),
        (bytes(300_000) + b"x" * 4097 + bytes(600_000), 2 * 4096), (b"x" * 5000, 2 * 4096), (b"\0", 0), (b"", 0),
    ],
    ids=["all", "behind", "before", "part of a page", "around", "none", "a byte", "empty"],
)  # fmt: skip
def test_zeros_become_holes(data: bytes, blocks: int, root: str, unpack: Unpack) -> None:
    assert unpack(file(b"f", data)).size == len(data)
    assert Path(root, "f").read_bytes() == data
    assert os.stat(f"{root}/f").st_size == len(data)
    assert os.stat(f"{root}/f").st_blocks * 512 == blocks


def test_holes_when_the_archive_comes_in_crumbs(root: str) -> None:
    class Crumbs(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 777))

    data = bytes(50_000) + b"middle" + bytes(50_000)
    fd = os.open(root, os.O_RDONLY)
    try:
        extract(Crumbs(tape.archive(file(b"f", data), file(b"g", b"after"))), fd)
    finally:
        os.close(fd)
    assert Path(root, "f").read_bytes() == data
    assert os.stat(f"{root}/f").st_blocks * 512 == 4096
    assert Path(root, "g").read_bytes() == b"after"


def test_a_whiteout_of_the_longest_name(root: str, unpack: Unpack) -> None:
    name = "n" * 255
    build(root, {name: "x", "stays": ""})
    unpack(file(b".wh." + name.encode()))
    assert_tree(root, {"stays": ""})
