"""Archives that want out, or that must not become layers: each is refused in one line, and nothing beside the root is
read, made or changed. What is decided for each is said in drivers/archive/__init__.py.

The classes are those of CVE-2014-6407, -9356 and -9358, CVE-2015-3627 and -3629, CVE-2018-15664, CVE-2021-32760,
CVE-2021-20291, and of Python's tarfile: CVE-2007-4559, CVE-2024-12718, CVE-2025-4138, -4330, -4435, -4517,
CVE-2026-11940, CVE-2026-82049.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivers.archive.errors import ArchiveError
from drivers.archive.extract import Extracted
from drivers.archive.limits import Limits
from drivers.archive.validate import validate
from tests.drivers.archive import tape
from tests.drivers.archive.tape import directory, extension, file, hard_link, header, pax, symlink
from tests.trees import Dir, File, Special, Symlink, Tree, assert_tree

Unpack = Callable[..., Extracted]

EVIL = file(b"evil/pwned", b"pwned", mode=0o4777)


def refused(victim: bytes) -> dict[str, tuple[list[bytes], str]]:
    """name -> (parts of the archive, what the line says); `victim` is the path of a directory beside the root."""
    return {
        "dotdot": ([file(b"../victim/pwned")], r"^\.\./victim/pwned \(byte 0\): its name leads above the root by its"),
        "dotdot inside": ([file(b"a/../../victim/pwned")], r"above the root by its '\.\.'"),
        "dotdot by pax": ([pax({b"path": b"../pwned"}), file(b"fine")], r"^\.\./pwned .*leads above the root"),
        "dotdot by a GNU name": ([extension(b"../pwned\0", b"L"), file(b"fine")], "leads above the root"),
        "dotdot by a prefix": ([file(b"pwned", prefix=b"..")], "leads above the root"),
        "dotdot in an absolute name": ([file(b"/../victim/pwned")], "leads above the root"),
        "through a loop": ([symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x")], "more than 40 symbolic"),
        "through long links": (
            [pax({b"linkpath": b"./" * 1000 + b"b"}), symlink(b"a", b""), pax({b"linkpath": b"./" * 1900 + b"c"}),
             symlink(b"b", b""), pax({b"linkpath": b"./" * 1900}), symlink(b"c", b""), file(b"a/x")],
            "with more than 4096 names",
        ),
        "hard link up": ([hard_link(b"a", b"../victim/secret")], r"target \.\./victim/secret leads above the root"),
        "hard link absolute": ([hard_link(b"a", victim + b"/secret")], "hard link to .*secret, which does not exist"),
        "hard link through a link": (
            [symlink(b"evil", victim), hard_link(b"a", b"evil/secret")], r"^a \(byte \d+\): .*evil/secret, which does"
        ),
        "hard link to nothing": ([hard_link(b"a", b"b")], "hard link to b, which does not exist"),
        "hard link to a later file": ([hard_link(b"a", b"b"), file(b"b")], "does not exist"),
        "hard link to itself": ([file(b"a"), hard_link(b"a", b"./a")], "a hard link to itself"),
        "hard link to a directory": ([directory(b"d/"), hard_link(b"a", b"d")], "a hard link to the directory d"),
        "hard link to the root": ([hard_link(b"a", b".")], "a hard link to the root"),
        "hard link to what it replaces": ([file(b"a/b"), hard_link(b"a", b"a/b")], "link to a file inside itself"),
        "below a file": ([file(b"a"), file(b"a/b")], "a part of its name is a file"),
        "a file as the root": ([file(b".")], "only a directory can be the root"),
        "a link as the root": ([symlink(b"./", victim)], "only a directory can be the root"),
        "no name": ([file(b"")], "only a directory can be the root"),
        "a NUL in a name": ([pax({b"path": b"a\0b"}), file(b"x")], "contains a NUL"),
        "a NUL in a target": ([pax({b"linkpath": b"a\0b"}), symlink(b"x", b"y")], "its target contains a NUL"),
        "no target": ([symlink(b"x", b"")], "its target is 0 bytes long"),
        "a long target": ([pax({b"linkpath": b"t" * 5000}), symlink(b"x", b"y")], "5000 bytes long, 1 to 4095"),
        "a long name": ([pax({b"path": b"n/" * 3000}), file(b"x")], "6000 bytes long, 4095 are allowed"),
        "a deep name": ([file(b"n/" * 1100 + b"x")], "1101 directories deep, 1024 are allowed"),
        "a whiteout of a long part": ([file(b".wh." + b"n" * 256)], "260 bytes long, 255 are allowed"),
        "a long part": ([pax({b"path": b"n" * 256}), file(b"x")], "256 bytes long, 255 are allowed"),
        "a device without a number": ([header(b"dev/x", b"3", major=4096, minor=1)], "it is device 4096:1, a number"),
        "a garbled ACL": (
            [pax({b"SCHILY.xattr.system.posix_acl_access": b"garbage"}), file(b"f")], "is not an access control list"
        ),
        "an ACL in garbled words": ([pax({b"SCHILY.acl.access": b"user::r"}), file(b"f")], "list is damaged"),
        "whiteout of nothing": ([file(b".wh.")], "a whiteout of no name"),
        "whiteout of .": ([file(b".wh..")], "a whiteout of no name"),
        "whiteout of ..": ([file(b"a/.wh...")], "a whiteout of no name"),
        "hard link to a pseudo-link that is none": ([hard_link(b"a", b".wh..wh.plnk/7.1")], "which does not exist"),
        "hard link to AUFS's own": ([hard_link(b"a", b".wh..wh.orph/x")], "hard link to the whiteout"),
        "whiteout on the way": ([file(b".wh.a/b")], "goes through a '.wh.' name"),
        "opaque mark on the way": ([file(b"a/.wh..wh..opq/b")], "goes through a '.wh.' name"),
        "whiteout on the way by a link": ([symlink(b"l", b".wh.x"), file(b"l/a")], "goes through a '.wh.' name"),
        "opaque mark on the way by links": (
            [directory(b"d"), symlink(b"l", b"/m/y"), symlink(b"m", b"d/.wh..wh..opq"), file(b"l/a")],
            r"^l/a \(byte 1536\): it goes through a '\.wh\.' name by a symbolic link",
        ),
        "whiteout on the way and back": ([symlink(b"l", b".wh.x/../d"), file(b"l/a")], "goes through a '.wh.' name"),
        "whiteout of a whiteout by a link": ([symlink(b"l", b".wh.x"), file(b"l/.wh.a")], "goes through a '.wh.' name"),
        "hard link through a whiteout by a link": (
            [file(b"f"), symlink(b"l", b".wh..wh.plnk"), hard_link(b"a", b"l/f")], "goes through a '.wh.' name"
        ),
        "hard link to a whiteout": ([file(b".wh.a"), hard_link(b"b", b".wh.a")], "hard link to the whiteout"),
        "size beyond the end": ([file(b"big", b"x", size=10_000)], "cut short, .* bytes of this entry"),
        "size short of the content": ([file(b"small", b"x" * 2000, size=1)], "behind small is damaged"),
        "a name to spoil a terminal": ([file(b"a\x1b[2J\nok/../../b")], r"^a\\x1b\[2J\\nok/\.\./\.\./b \(byte 0\): "),
    }  # fmt: skip


def harmless(victim: bytes) -> dict[str, tuple[list[bytes], Tree]]:
    """name -> (parts of the archive, what they make): what wants out, and is in the root all the same."""
    inside: dict[str, Any] = {}
    where = inside
    for part in os.fsdecode(victim).split("/")[1:]:
        where[part] = {}
        where = where[part]
    where["pwned"] = "pwned"
    out = Symlink(target=os.fsdecode(victim))
    pwned = file(b"evil/pwned", b"pwned")
    return {
        "absolute": ([file(victim + b"/pwned", b"pwned")], inside),
        "absolute twice": ([file(b"//" + victim + b"/pwned", b"pwned")], inside),
        "absolute by pax": ([pax({b"path": victim + b"/pwned"}), file(b"fine", b"pwned")], inside),
        "the root": ([directory(b"/"), directory(b""), directory(b"a/..")], {}),
        "dotdot that stays inside": ([file(b"a/../b"), file(b"/./c/../d")], {"b": "", "d": ""}),
        "through an absolute link": ([symlink(b"evil", victim), pwned], {"evil": out, **inside}),
        "through two absolute links": (
            [symlink(b"a", b"/evil"), symlink(b"evil", victim), file(b"a/pwned", b"pwned")],
            {"a": Symlink(target="/evil"), "evil": out, **inside},
        ),
        "through a climbing link": (
            [symlink(b"evil", b"../victim"), pwned], {"evil": Symlink(target="../victim"), "victim": {"pwned": "pwned"}}
        ),
        "through two links": (
            [directory(b"a/"), symlink(b"a/up", b".."), symlink(b"evil", b"a/up/../victim"), pwned],
            {"a": {"up": Symlink(target="..")}, "evil": Symlink(target="a/up/../victim"), "victim": {"pwned": "pwned"}},
        ),
        "through a deep link (CVE-2025-4330)": (
            [directory(b"a/b/"), symlink(b"a/b/up", b"../../../.."), symlink(b"evil", b"a/b/up/victim"), pwned],
            {"a": {"b": {"up": Symlink(target="../../../..")}}, "evil": Symlink(target="a/b/up/victim"),
             "victim": {"pwned": "pwned"}},
        ),
        "directory through a link": (
            [symlink(b"evil", b"/x"), directory(b"evil/dir/")], {"evil": Symlink(target="/x"), "x": {"dir": {}}}
        ),
        "fifo through a link": (
            [symlink(b"evil", b"/x"), header(b"evil/p", b"6")], {"evil": Symlink(target="/x"), "x": {"p": Special()}}
        ),
        "through /proc": (
            [symlink(b"evil", b"/proc/self/cwd"), pwned],
            {"evil": Symlink(target="/proc/self/cwd"), "proc": {"self": {"cwd": {"pwned": "pwned"}}}},
        ),
        "whiteouts through a link": (
            [symlink(b"evil", b"/x"), file(b"x/secret"), file(b"evil/.wh.secret"), file(b"evil/.wh..wh..opq")],
            {"evil": Symlink(target="/x"), "x": {"secret": ""}},
        ),
        "overlay's marks": ([
            pax({b"SCHILY.xattr.trusted.overlay.opaque": b"y", b"SCHILY.xattr.user.overlay.impure": b"y",
                 b"SCHILY.xattr.trusted.overlay.redirect": b"/../victim",
                 b"SCHILY.xattr.user.fuseoverlayfs.opaque": b"y",
                 b"LIBARCHIVE.xattr.trusted%2Eoverlay.metacopy": b"eQ", b"SCHILY.xattr.user.overlay.opaque": b"y",
                 b"SCHILY.xattr.user.containers.override_stat": b"0:0:04755", b"SCHILY.xattr.user.note": b"kept"}),
            directory(b"d/", mode=0o700),
        ], {"d": Dir({}, mode=0o700, xattrs={"user.note": b"kept"})}),
        "our marks": (
            [pax({b"SCHILY.xattr.trusted.unionfs.ino": b"1", b"SCHILY.xattr.user.unionfs.opaque": b"y"}), file(b"f")],
            {"f": File("", xattrs={})},
        ),
        "attributes that a kind cannot have": ([
            pax({b"SCHILY.xattr.user.note": b"x", b"SCHILY.acl.access": b"user::rwx,group::r-x,other::r-x"}),
            symlink(b"l", b"x"),
            pax({b"SCHILY.xattr.user.note": b"x", b"SCHILY.acl.default": b"user::rwx,group::r-x,other::r-x"}),
            header(b"p", b"6"),
        ], {"l": Symlink(target="x", xattrs={}), "p": Special(xattrs={})}),
        "AUFS's own": (
            [directory(b".wh..wh.orph/"), file(b".wh..wh.orph/x", b"x"), directory(b".wh..wh.plnk/"),
             file(b".wh..wh.aufs"), file(b"a"), file(b"d/.wh..wh.x"), file(b".wh..wh.plnk/9.9", b"nobody's")],
            {"a": ""},
        ),
        "whiteouts of all kinds": (
            [directory(b".wh.a/"), file(b".wh.b", b"x"), symlink(b".wh.c", b"x"),
             header(b".wh.d", b"3", major=1, minor=3), file(b"after")],
            {"after": ""},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", harmless(b"/victim"))
def test_taken_inside_the_root(name: str, root: str, victim: str, unpack: Unpack) -> None:
    """As containerd takes it: names and links are resolved as if the root were `/`, and other tools' marks are no
    more than bytes."""
    parts, tree = harmless(os.fsencode(victim))[name]
    assert unpack(*parts) == validate(tape.stream(*parts))
    assert_tree(root, tree)


@pytest.mark.parametrize("name", refused(b"/victim"))
def test_refused_and_nothing_touched(name: str, victim: str, unpack: Unpack) -> None:
    parts, says = refused(os.fsencode(victim))[name]
    with pytest.raises(ArchiveError, match=says) as extracting:
        unpack(*parts)
    assert "\n" not in str(extracting.value) and "\x1b" not in str(extracting.value)


@pytest.mark.parametrize("name", refused(b"/victim"))
def test_found_at_import_too(name: str) -> None:
    """Validation says the same as extraction, word for word, before anything is made."""
    parts, says = refused(b"/victim")[name]
    with pytest.raises(ArchiveError, match=says):
        validate(tape.stream(*parts))


def test_links_are_stored_as_they_are_and_not_followed(root: str, victim: str, unpack: Unpack) -> None:
    """A link may say anything; replacing it, owning it and dating it change the link."""
    target = os.fsencode(victim)
    unpack(
        symlink(b"abs", target + b"/secret", uid=5, mtime=77), symlink(b"up", b"../victim/secret"),
        symlink(b"dir", target), symlink(b"null", b"/dev/null"), symlink(b"dangling", b"nowhere"),
    )  # fmt: skip
    assert os.readlink(f"{root}/abs") == f"{victim}/secret"
    info = os.lstat(f"{root}/abs")
    assert (info.st_uid, info.st_mtime) == (5, 77)
    unpack(file(b"abs", b"new"), directory(b"dir/", mode=0o700), file(b"dir/secret"), file(b"up"))
    assert not os.path.islink(f"{root}/dir") and os.path.isfile(f"{root}/dir/secret")


def test_a_hard_link_to_a_link_is_the_link(root: str, victim: str, unpack: Unpack) -> None:
    """Not what it points to, neither by linking nor by the mode and owner of the entry (CVE-2026-82049)."""
    unpack(
        symlink(b"link", os.fsencode(victim) + b"/secret"),
        hard_link(b"hard", b"link", mode=0o4777, uid=1234, mtime=5),
    )
    assert os.readlink(f"{root}/hard") == f"{victim}/secret"
    assert os.lstat(f"{root}/hard").st_ino == os.lstat(f"{root}/link").st_ino
    unpack(file(b"hard", b"replaced, not written through"))


def test_writing_a_file_again_does_not_write_through_a_hard_link(root: str, unpack: Unpack) -> None:
    unpack(file(b"a", b"first"), hard_link(b"b", b"a"), file(b"a", b"second"))
    assert_tree(root, {"a": "second", "b": "first"})


def test_a_file_shared_with_the_host_is_replaced_and_not_written(root: str, tmp_path: Path, unpack: Unpack) -> None:
    """CVE-2021-32760: nothing is opened that was there before, nor its mode or owner changed."""
    (tmp_path / "hosts").write_text("of the host")
    (tmp_path / "hosts").chmod(0o600)
    os.link(tmp_path / "hosts", f"{root}/etc")
    unpack(file(b"etc", b"new", mode=0o4777, uid=7))
    assert (tmp_path / "hosts").read_text() == "of the host"
    info = os.stat(tmp_path / "hosts")
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_nlink) == (0o600, 0, 1)


def test_links_that_stay_inside_are_followed(root: str, unpack: Unpack) -> None:
    """The merged /usr: an entry may go through a relative link, also one that comes before what it points to."""
    unpack(
        symlink(b"lib", b"usr/lib"), file(b"lib/a", b"1"), directory(b"usr/lib/"), file(b"usr/lib/b"),
        symlink(b"usr/lib64", b"../usr/./lib"), file(b"usr/lib64/c"), hard_link(b"d", b"lib/a"),
    )  # fmt: skip
    assert sorted(os.listdir(f"{root}/usr/lib")) == ["a", "b", "c"]
    assert os.stat(f"{root}/d").st_ino == os.stat(f"{root}/usr/lib/a").st_ino


def test_a_directory_takes_the_place_of_a_link(root: str, victim: str, unpack: Unpack) -> None:
    """As docker and GNU tar: the entry says that it is a directory, not what a link leads to."""
    os.symlink(victim, f"{root}/etc")
    unpack(directory(b"etc/", mode=0o777, uid=7), file(b"etc/passwd", b"theirs"))
    assert stat.S_ISDIR(os.lstat(f"{root}/etc").st_mode)


def test_an_absolute_link_that_was_there_leads_into_the_root(root: str, victim: str, unpack: Unpack) -> None:
    """Debian's /var/run, and an entry of a later layer below it; /run need not be there yet."""
    os.makedirs(f"{root}/var")
    os.symlink("/run", f"{root}/var/run")
    os.symlink(victim, f"{root}/out")
    unpack(file(b"var/run/app/pid", b"7"), file(b"out/secret", b"theirs"))
    assert Path(root, "run/app/pid").read_text() == "7"
    assert Path(f"{root}{victim}/secret").read_text() == "theirs"


def test_whiteouts_do_not_follow_links(root: str, victim: str, unpack: Unpack) -> None:
    os.symlink(victim, f"{root}/link")
    os.symlink(f"{victim}/secret", f"{root}/file")
    unpack(file(b".wh.link"), file(b".wh.file"))
    assert os.listdir(root) == []


def test_removing_a_tree_does_not_follow_links(root: str, victim: str, unpack: Unpack) -> None:
    os.makedirs(f"{root}/d/e")
    os.symlink(victim, f"{root}/d/e/link")
    unpack(file(b"d", b"a file now"))
    os.makedirs(f"{root}/o/e")
    os.symlink(victim, f"{root}/o/e/link")
    unpack(file(b"o/.wh..wh..opq"))
    assert os.listdir(f"{root}/o") == []


def test_a_thousand_directories_deep(root: str, unpack: Unpack) -> None:
    """Python's recursion limit is a thousand. The tree is made, and removed again."""
    unpack(file(b"d/" * 1023 + b"f"))
    unpack(file(b"d", b"x"))
    assert os.path.isfile(f"{root}/d")


def test_a_tree_cannot_grow_deeper_than_a_name(root: str, unpack: Unpack) -> None:
    """By way of links it could; such a tree could not be named any more."""
    deep = b"dd/" * 1000
    with pytest.raises(ArchiveError, match="links to more than 1024 directories in one another"):
        unpack(directory(deep), symlink(b"link", deep), file(b"link/" + deep + b"f"))
    long = b"n" * 200 + b"/"
    with pytest.raises(ArchiveError, match="File name too long"):
        unpack(directory(long * 19), symlink(b"long", long * 19), file(b"long/" + long * 19 + b"f"))
    unpack(file(b".wh." + long[:-1]), file(b".wh.long"))
    unpack(file(b".wh.dd"))
    assert os.listdir(root) == ["link"]


def test_bombs(unpack: Unpack, root: str) -> None:
    with pytest.raises(ArchiveError, match="larger than the 100000 bytes"):
        unpack(*[file(b"%d" % number, bytes(1000)) for number in range(100)], limits=Limits(total=100_000))
    with pytest.raises(ArchiveError, match="more than 50 entries"):
        unpack(*[file(b"%d" % number) for number in range(100)], limits=Limits(entries=50))


def test_owners_are_numbers(root: str, unpack: Unpack) -> None:
    """Every header of the builder says root:root in words (CVE-2019-14271: names are not looked up)."""
    unpack(file(b"a", uid=12345, gid=54321))
    assert (os.stat(f"{root}/a").st_uid, os.stat(f"{root}/a").st_gid) == (12345, 54321)


def test_no_descriptor_is_left_open(unpack: Unpack, root: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for parts, _ in refused(b"/victim").values():
        with contextlib.suppress(ArchiveError):
            unpack(*parts)
    unpack(file(b"fine"))
    assert len(os.listdir("/proc/self/fd")) == before
