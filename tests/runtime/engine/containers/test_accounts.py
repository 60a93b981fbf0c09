"""Users and groups, looked up in the files of an image."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from runtime.engine.containers import accounts
from runtime.errors import ConfigError
from tests.runtime.conftest import Runtime
from tests.runtime.containers import LOOP, start

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nodd:x:-1:0::/:/bin/sh\nbroken\n"
GROUP = "root:x:0:\nstaff:x:50:app,other\nwheel:x:10:app\napp:x:1001:\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", accounts.Account(0, 0, (), "/root")),
        ("app", accounts.Account(1000, 1001, (10, 50), "/home/app")),
        ("1000", accounts.Account(1000, 1001, (10, 50), "/home/app")),
        ("app:staff", accounts.Account(1000, 50, (), "/home/app")),
        ("app:7", accounts.Account(1000, 7, (), "/home/app")),
        ("4242", accounts.Account(4242, 0, (), "/")),
        ("4242:4243", accounts.Account(4242, 4243, (), "/")),
    ],
)
def test_accounts(tmp_path: Path, user: str, expected: accounts.Account) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    assert accounts.lookup(user, str(tmp_path)) == expected


@pytest.mark.parametrize(
    "user", ["nobody", "-1", "+0", "0x0", "4294967295", "99999999999", "odd", "٠", "app:none", "app:", " 0"]
)
def test_nothing_unknown_is_taken_for_root(tmp_path: Path, user: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    with pytest.raises(ConfigError, match="unable to find"):
        accounts.lookup(user, str(tmp_path))


# Rows as glibc takes or leaves them. What follows each is looked up: the names at its beginning, and every number.
PASSWD_ROWS = (
    "plain:x:10:11:text:/home/plain:/bin/sh", "noshell:x:12:13:text:/home/noshell", "nohome:x:14:15:text",
    "notext:x:16:17", "emptyhome:x:18:19:::", "nogid:x:20", "emptygid:x:21::text:/:", "nothing", "nopassword::22:23",
    "emptyuid:x::24:::", "worded:x:root:0:::", "trailing:x:25 :26:::", "leading:x: 27:\t28:::", "signed:x:+29:+30:::",
    "zeros:x:0031:00032:::", "hex:x:0x21:0x22:::", "fraction:x:1.5:0:::", "  indented:x:33:34::/in:",
    "#comment:x:35:36:::", " # indented:x:37:38:::", "in#side:x:39:40:::", "+:x:41:42:::", "+plus:x:43:44:::",
    "-minus:x:45:46:::", "+", "-", "", "   ", ":x:47:48::/unnamed:", "more:x:49:50:::/bin/sh:and:more",
    "tail:x:51:52:::\r", "return:x:53:54\r", "plain:x:55:56:again:/second:", "other:x:10:57:the same number:/third:",
    "spaced :x:58:59:::", "cut\0off:x:60:61:::", "after:x:62:63:a\0b:/after:", "form\f:x:64:65:::",
    "arabic:x:\u0661:\u0662:::", "huge:x:4294967294:4294967294:::",
)  # fmt: skip
GROUP_ROWS = (
    "g-plain:x:100:plain,notext", "g-three:x:101", "g-empty:x:102:", "g-two:x", "g-none", "g-nogid:x::plain",
    "g-nopassword::103:plain", "g-spaced:x:104: plain,\tnotext , after", "g-commas:x:105:,,plain,,",
    "g-colon:x:106:a:plain", "g-signed:x:+107:plain", "g-trailing:x:108 :plain", "g-leading:x: 109:plain",
    "  g-indented:x:110:plain", "#g-comment:x:111:plain", "+g-plus:x:112:", "+", "g-zeros:x:00113:plain",
    "g-return:x:114\r", "g-tail:x:115:plain\r", "g-huge:x:4294967294:plain", "g-plain:x:116:after", "",
    ":x:117:plain", "g-twice:x:118:plain,plain", "g-cut:x:119:pl\0ain", "g-last:x:120:plain",
)  # fmt: skip

# Who is in a group by a line that is a comment, or has no name: initgroups(3) reads those, and getgrnam(3) does not.
_NO_GROUPS = {111, 117}

_ASK_GLIBC = """
import json, os, pwd, grp, sys
os.chroot(sys.argv[1])
def ask(call, *arguments):
    try:
        return call(*arguments)
    except KeyError:
        return None
def user(name):
    row = ask(pwd.getpwnam, name)
    return row and [row.pw_uid, row.pw_gid, row.pw_dir, sorted({*os.getgrouplist(name, row.pw_gid)} - {row.pw_gid})]
names, numbers, groups = json.load(sys.stdin)
print(json.dumps([
    [user(name) for name in names],
    [row and [row.pw_uid, row.pw_gid, row.pw_dir] for row in (ask(pwd.getpwuid, number) for number in numbers)],
    [row and row.gr_gid for row in (ask(grp.getgrnam, name) for name in groups)],
]))
"""


@pytest.mark.needs("root")
def test_accounts_are_what_glibc_finds(tmp_path: Path) -> None:
    """The host's own C library, in a root of these files."""
    (tmp_path / "etc").mkdir()
    for file, rows in (("passwd", PASSWD_ROWS), ("group", GROUP_ROWS)):
        (tmp_path / "etc" / file).write_bytes("\n".join(rows).encode())
    (tmp_path / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\ninitgroups: files\n")
    names = [name for row in PASSWD_ROWS if (name := row.split("\0")[0].strip().split(":")[0]) and name not in "+-"]
    names += ["spaced ", "absent", "comment", "minus", "plus"]
    numbers = [*range(1, 70)]
    groups = [name for row in GROUP_ROWS if (name := row.strip().partition(":")[0]) and name != "+"]
    done = subprocess.run(
        [sys.executable, "-c", _ASK_GLIBC, tmp_path], input=json.dumps([names, numbers, groups]), text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_name, by_number, by_group = json.loads(done.stdout)

    def ours(user: str) -> accounts.Account | None:
        try:
            return accounts.lookup(user, str(tmp_path))
        except ConfigError:
            return None

    for name, row in zip(names, by_name, strict=True):
        expected = row and accounts.Account(row[0], row[1], tuple(sorted({*row[3]} - _NO_GROUPS)), row[2] or "/")
        assert ours(name) == expected, f"user {name!r}"
    for number, row in zip(numbers, by_number, strict=True):
        found = ours(str(number))
        assert found is not None and found[:2] == (tuple(row[:2]) if row else (number, 0)), f"user {number}"
    for name, gid in zip(groups, by_group, strict=True):
        found = ours(f"0:{name}")
        assert (found and found.gid) == gid, f"group {name!r}"
    assert sum(row is not None for row in by_name) > 15 and sum(gid is not None for gid in by_group) > 12


@pytest.mark.parametrize("number", ["-1", "-5", "-0", "4294967295", "4294967296", "18446744073709551616", "9" * 5000])
def test_an_id_that_the_c_library_would_make_another_of(tmp_path: Path, number: str) -> None:
    """strtoul(3) takes them for the largest number, or for what is left of them."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(f"odd:x:{number}:0:::\nodder:x:0:{number}:::\nfine:x:7:8:::\n")
    (tmp_path / "etc/group").write_text(f"oddest:x:{number}:fine\n")
    for user in ("odd", "odder", "fine:oddest"):
        with pytest.raises(ConfigError, match="unable to find"):
            accounts.lookup(user, str(tmp_path))
    assert accounts.lookup("fine", str(tmp_path)) == accounts.Account(7, 8, (), "/")


# What str.splitlines() and a file's universal newlines end a line at, and getpwent(3) does not.
NO_LINE_ENDS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("no_end", NO_LINE_ENDS, ids=ascii)
def test_lines_end_at_newlines_only(tmp_path: Path, no_end: str) -> None:
    """Who may change the text about himself, chfn(1), would make an account of any number otherwise."""
    (tmp_path / "etc").mkdir()
    passwd = f"app:x:1000:1001:me{no_end}evil:x:0:0::/:/bin/sh\nlast:x:7:7::/:/bin/sh\n"
    (tmp_path / "etc/passwd").write_bytes(passwd.encode())
    (tmp_path / "etc/group").write_bytes(f"staff:x:50:{no_end}wheel:x:0:app\nlast:x:8:app\n".encode())
    for unknown in ("evil", "app:wheel"):
        with pytest.raises(ConfigError, match="unable to find"):
            accounts.lookup(unknown, str(tmp_path))
    assert accounts.lookup("app", str(tmp_path))[:3] == (1000, 1001, (8,))
    assert accounts.lookup("last", str(tmp_path)).uid == 7


def test_passwd_is_the_images_and_not_the_hosts(tmp_path: Path) -> None:
    """The image's /etc leads out of it."""
    (tmp_path / "etc").symlink_to("/etc")
    with pytest.raises(ConfigError):
        accounts.lookup("daemon", str(tmp_path))
    (tmp_path / "etc").unlink()
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    assert accounts.lookup("0", str(tmp_path)).uid == 0


def test_no_device_is_opened_for_passwd(tmp_path: Path) -> None:
    """The container's root may make one there; to the host it would answer."""
    if os.geteuid() != 0:
        pytest.skip("it needs root")
    (tmp_path / "etc").mkdir()
    os.mknod(tmp_path / "etc/passwd", stat.S_IFCHR | 0o644, os.makedev(1, 5))  # zero: it never ends
    (tmp_path / "etc/group").write_text(f"many:x:{'9' * 5000}:joe\nlarge:x:4294967295:root\nfine:x:9:root\n")
    assert accounts.lookup("0", str(tmp_path)) == accounts.Account(0, 0, (), "/root")
    os.unlink(tmp_path / "etc/passwd")
    (tmp_path / "etc/passwd").write_text(PASSWD)
    assert accounts.lookup("root", str(tmp_path)).groups == (9,)


TABLE = 1 << 20


@pytest.mark.parametrize("file", ["passwd", "group"])
def test_a_table_that_is_too_large(tmp_path: Path, file: str) -> None:
    """The container may make it of any size, at any time. A line is never taken for what a part of it says."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    last = "last:x:7:7::/:" if file == "passwd" else "last:x:7:"
    table = tmp_path / "etc" / file
    rows = table.read_text()
    asked = "last" if file == "passwd" else "root:last"
    table.write_text(f"{rows}{'#' * (TABLE - len(rows) - len(last) - 1)}\n{last}")
    assert os.path.getsize(table) == TABLE
    assert 7 in accounts.lookup(asked, str(tmp_path))[:2]
    with open(table, "a") as more:
        more.write("0")
    with pytest.raises(ConfigError, match=rf"the image's /etc/{file} is larger than 1 MiB"):
        accounts.lookup(asked, str(tmp_path))
    os.truncate(table, 1 << 40)
    with pytest.raises(ConfigError, match=r"is larger than 1 MiB"):
        accounts.lookup(asked, str(tmp_path))
    # Numbers need no group's entry.
    if file == "group":
        assert accounts.lookup("app:9", str(tmp_path)) == accounts.Account(1000, 9, (), "/home/app")


def test_tables_cost_little_more_than_their_size(tmp_path: Path) -> None:
    """The container's choice of rows is not kept in memory of the host's."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("name:x:1:2:\n" * (TABLE // 12))
    (tmp_path / "etc/group").write_text(":" * TABLE)
    tracemalloc.start()
    try:
        assert accounts.lookup("4242", str(tmp_path)) == accounts.Account(4242, 0, (), "/")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * TABLE


def test_accounts_are_read_from_files_only(runtime: Runtime) -> None:
    """Opening what is none has effects: a writer of a fifo goes on, a watchdog starts."""
    row = "app:x:7:7::/:/bin/sh"
    start(runtime, "odd", f"rm /etc/passwd; mkfifo /etc/passwd; (echo {row} >/etc/passwd; echo opened) & {LOOP}")
    assert "unable to find user app" in runtime.refused("exec", "-u", "app", "odd", "id", code=125)
    assert runtime("logs", "odd") == "ready\n"
    runtime("rm", "-f", "odd")
