"""Three dialects, one plan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.options import MountPlan, OptionError, names_branches, parse


def branches(plan: MountPlan) -> list[tuple[str, str]]:
    return [(branch.path, branch.permission) for branch in plan.branches]


@pytest.mark.parametrize(
    ("spec", "options", "expected"),
    [
        ("low:up", [], [("up", "rw"), ("low", "ro")]),
        ("a:b:c:d", [], [("d", "rw"), ("c", "ro"), ("b", "ro"), ("a", "ro")]),
        ("up", [], [("up", "rw")]),
        ("a=rr:b=rw", [], [("b", "rw"), ("a", "rr")]),
        ("a=ro+wh:b", [], [("b", "rw"), ("a", "ro")]),
        (None, ["br=/up=rw:/low=ro"], [("/up", "rw"), ("/low", "ro")]),
        (None, ["br:/up:/low:/lower"], [("/up", "rw"), ("/low", "ro"), ("/lower", "ro")]),
        (None, ["dirs=/up=rw:/low=rr+wh"], [("/up", "rw"), ("/low", "rr")]),
        (None, ["lowerdir=a:b,upperdir=u,workdir=w"], [("u", "rw"), ("a", "ro"), ("b", "ro")]),
        (None, ["lowerdir=a:b", "upperdir=u"], [("u", "rw"), ("a", "ro"), ("b", "ro")]),
        (r"a\:b:c\=d:e\,f:g\\h", [], [("g\\h", "rw"), ("e,f", "ro"), ("c=d", "ro"), ("a:b", "ro")]),
        (None, [r"br=/a\,b:/c\:d=ro,noatime"], [("/a,b", "rw"), ("/c:d", "ro")]),
        (None, [r"lowerdir=a\:b:c,upperdir=u=v"], [("u=v", "rw"), ("a:b", "ro"), ("c", "ro")]),
    ],
)
def test_the_dialects_end_in_one_list(spec: str | None, options: list[str], expected: list[tuple[str, str]]) -> None:
    plan = parse(spec, options)
    assert branches(plan) == expected
    assert not plan.read_only


@pytest.mark.parametrize(
    ("spec", "options"),
    [("low:up=ro", []), ("a=rr:b=rr", []), (None, ["lowerdir=a:b"]), (None, ["br=a=ro:b"]), ("low:up", ["ro"]),
     ("low:up", ["rw,ro"]), ("low:up", ["nodev", "ro"])],
)  # fmt: skip
def test_a_union_without_a_writable_branch_is_read_only(spec: str | None, options: list[str]) -> None:
    plan = parse(spec, options)
    assert plan.read_only
    assert all(permission != "rw" for _, permission in branches(plan))


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (["nosuid,nodev,noexec,noatime"], {"nosuid", "nodev", "noexec", "noatime"}),
        (["nosuid,suid,dev,exec,rw"], set()),
        (["suid,nosuid"], {"nosuid"}),
        (["ro,rw"], set()),
        (["defaults,auto,_netdev,x-systemd.automount,comment=a,udba=none,default_permissions"], set()),
        (["sync", "async,relatime"], {"relatime"}),
        (["noatime,relatime", "strictatime,nodiratime"], {"strictatime", "nodiratime"}),
        (["strictatime,noatime"], {"noatime"}),
        (["user=joe,users,owner,group,helper=a,uhelper=b,silent,loud,x-a=b,X-b,nomand,noiversion,nolazytime"], set()),
        ([",,nodev,"], {"nodev"}),
    ],
)
def test_options_of_mount(options: list[str], flags: set[str]) -> None:
    assert parse("low:up", options).flags == flags


def test_as_mount8_says_it() -> None:
    """It always says rw, and -s is for options that are unknown."""
    assert parse("a=ro", ["rw"], rw_is_default=True).read_only
    assert not parse("a", ["ro,rw"], rw_is_default=True).read_only
    assert parse("a", ["frobnicate=1,nodev"], sloppy=True).flags == {"nodev"}
    with pytest.raises(OptionError, match="'lazytime'"):
        parse("a", ["lazytime"], sloppy=True)
    assert names_branches(["nodev", "rw,lowerdir=a"])
    assert names_branches(["br:a"])
    assert not names_branches([r"fsname=a\,br=b,nodev", "rw"])


def test_what_is_not_a_flag() -> None:
    plan = parse(None, ["lowerdir=a,upperdir=b,workdir=/w\\,x,allow_other"])
    assert plan.workdir == "/w,x"
    assert plan.allow_other
    assert not parse("a:b").allow_other
    assert parse("a:b", ["volatile"]).volatile
    assert not parse("a:b").volatile
    assert [parse("a:b", words).xino for words in ([], ["xino=off"], ["xino=off,xino=on"])] == ["auto", "off", "on"]


@pytest.mark.parametrize(
    ("options", "transport", "passthrough", "spin"),
    [
        ([], "auto", "programs", 200),
        (["transport=direct,posix,spin=0"], "direct", "none", 0),
        (["transport=pyfuse3", "spin=10000"], "pyfuse3", "programs", 10_000),
        (["transport=direct,spin=7", "transport=auto,spin=8"], "auto", "programs", 8),
        (["posix", "passthrough=all"], "auto", "all", 200),
        (["passthrough=all,posix"], "auto", "none", 200),
    ],
)
def test_how_it_is_served(options: list[str], transport: str, passthrough: str, spin: int) -> None:
    plan = parse("a:b", options)
    assert (plan.transport, plan.passthrough, plan.spin) == (transport, passthrough, spin)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], ("unionfs", "unionfs")),
        (["fsname=disk,subtype=mine"], ("disk", "mine")),
        (["fsname=a", "fsname=b=c:d"], ("b=c:d", "unionfs")),
        ([r"fsname=a\,b\\c,nodev", "subtype=a.b-c+d_e"], (r"a,b\c", "a.b-c+d_e")),
        (["fsname=a\nb\udcff é"], ("a\nb\udcff é", "unionfs")),
    ],
)
def test_how_it_is_shown(options: list[str], shown: tuple[str, str]) -> None:
    plan = parse("a:b", options)
    assert (plan.fsname, plan.subtype) == shown


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        (None, [], ["no branches"]),
        ("low:up", ["transport=fuse"], ["transport=fuse", "auto, direct or pyfuse3"]),
        ("low:up", ["transport"], ["auto, direct or pyfuse3"]),
        ("low:up", ["posix=1"], ["'posix=1'", "known are"]),
        ("low:up", ["xino"], ["auto, on or off"]),
        ("low:up", ["xino=32"], ["xino=32", "auto, on or off"]),
        ("low:up", ["passthrough"], ["programs, all or none"]),
        ("low:up", ["passthrough=some"], ["passthrough=some", "programs, all or none"]),
        ("low:up", ["fsname"], ["'fsname'", "known are"]),
        ("low:up", ["fsname="], ["'fsname='", "255 bytes"]),
        ("low:up", ["fsname=" + "\n" * 256], ["fsname", "255 bytes"]),
        *(("low:up", [f"subtype{value}"], ["subtype", "a word"])
          for value in ("", "=", "=a b", "=a/b", "=..", "=a\nb", "=é", "=a#", r"=a\\b", "=" + "a" * 251)),
        *(("low:up", [f"spin{value}"], [f"spin{value}", "0 (off)", "10000"])
          for value in ("", "=", "=-1", "=1.5", "=1ms", "=10001", "=99999", "=" + "9" * 5000)),
        ("low:up", ["frobnicate"], ["'frobnicate'", "lowerdir"]),
        ("low:up", ["nosuidd"], ["'nosuidd'"]),
        ("low:up", ["lazytime"], ["'lazytime'", "branches' file systems"]),
        ("low:up", ["iversion"], ["'iversion'", "counter"]),
        ("low:up", ["mand"], ["'mand'", "mandatory locks"]),
        ("low:up", ["nosuid,remount"], ["'remount'", "mount(8)"]),
        ("low:up", ["commentary"], ["'commentary'"]),
        ("low:up", ["upperdir"], ["'upperdir'"]),
        ("low:up", ["udba=reval"], ["udba=reval", "udba=none"]),
        ("low:up", ["br=/a:/b"], ["'low:up'", "'br=/a:/b'", "choose one"]),
        (None, ["br=/a", "br=/b"], ["twice"]),
        (None, ["lowerdir=a,lowerdir=b"], ["lowerdir", "twice"]),
        (None, ["upperdir=u,workdir=w"], ["lowerdir"]),
        ("low:up=wr", [], ["'wr'", "'up=wr'", "rw, ro, rr"]),
        ("low=ro+coo:up", [], ["'+coo'", "ro+wh"]),
        ("low:up=rw+wh", [], ["'+wh'"]),
        ("low::up", [], ["empty branch", "'low::up'"]),
        ("low:up:", [], ["empty branch"]),
        ("=rw", [], ["empty branch"]),
        (None, ["lowerdir=a::b"], ["empty branch", "'a::b'"]),
        ("low=rw:up", [], ["'low'", "not on top"]),
        ("low=rw:up=ro", [], ["'low'", "not on top"]),
        ("low:up=ro", ["rw"], ["rw", "no branch is writable"]),
    ],
)
def test_what_makes_no_sense_is_named(spec: str | None, options: list[str], words: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        parse(spec, options)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text


names = st.text(min_size=1).filter(lambda name: "\0" not in name)


@given(st.lists(names, min_size=1, max_size=5))
def test_every_name_can_be_escaped(paths: list[str]) -> None:
    escaped = ["".join("\\" + c if c in "\\:=," else c for c in path) for path in paths]
    assert [path for path, _ in branches(parse(":".join(escaped)))] == paths[::-1]
    assert [path for path, _ in branches(parse(None, ["br=" + ":".join(escaped)]))] == paths


@given(st.text(alphabet="ab:=,\\+rwo ", max_size=40), st.text(alphabet="br=:lowerdiu,\\ ", max_size=40))
def test_any_text_is_a_plan_or_an_option_error(spec: str, options: str) -> None:
    try:
        plan = parse(spec, [options])
    except OptionError:
        return
    assert plan.branches
    assert all(branch.path for branch in plan.branches)
