"""Docker's way to write options, and what is made of them; in this process, nothing is run."""

from __future__ import annotations

import pytest

from runtime.cli import human, run, settings
from runtime.cli.arguments import HelpWanted, Option, describe, parse
from runtime.cli.usage import UsageError
from runtime.engine.containers.request import Volume

TABLE = (Option("all", "a"), Option("env", "e", "K=V"), Option("name", value="NAME"), Option("tty", "t"))


@pytest.mark.parametrize(
    ("words", "expected", "arguments"),
    [
        ("-at", {"all": ["true"], "tty": ["true"]}, []),
        ("-ateA=1", {"all": ["true"], "tty": ["true"], "env": ["A=1"]}, []),
        ("-e A=1 -e=B=2 -eC=3 --env D=4 --env=E=5", {"env": ["A=1", "B=2", "C=3", "D=4", "E=5"]}, []),
        ("--name=", {"name": [""]}, []),
        ("--all=false -t=true", {"all": ["false"], "tty": ["true"]}, []),
        ("-a x -t y", {"all": ["true"]}, ["x", "-t", "y"]),
        ("-a -- -t", {"all": ["true"]}, ["-t"]),
        ("-", {}, ["-"]),
        ("--name -- x", {"name": ["--"]}, ["x"]),
        ("x --", {}, ["x", "--"]),
    ],
)
def test_options(words: str, expected: dict[str, list[str]], arguments: list[str]) -> None:
    assert parse(words.split(), TABLE, interspersed=False) == (expected, arguments)


def test_options_after_arguments() -> None:
    assert parse(["x", "-t", "y", "--", "-a"], TABLE, interspersed=True) == ({"tty": ["true"]}, ["x", "y", "-a"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--nope", "unknown flag: --nope"),
        ("--nope=1", "unknown flag: --nope"),
        ("--nam x", "unknown flag: --nam"),
        ("-x", "unknown shorthand flag: 'x' in -x"),
        ("-tx", "unknown shorthand flag: 'x' in -tx"),
        ("-e", "flag needs an argument: -e"),
        ("--name", "flag needs an argument: --name"),
        ("--all=perhaps", "invalid value 'perhaps' for the flag --all"),
        ("-t=", "invalid value '' for the flag -t="),
    ],
)
def test_wrong_options(words: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(words.split(), TABLE, interspersed=True)


def test_help_is_found_among_other_options() -> None:
    for words in (["--help"], ["-h"], ["-th"], ["-a", "--help", "--nope"]):
        with pytest.raises(HelpWanted):
            parse(words, TABLE, interspersed=True)


def test_a_verb_may_have_its_own_h() -> None:
    table = (*TABLE, Option("hostname", "h", "NAME"))
    assert parse(["-h", "box"], table, interspersed=False).value("hostname") == "box"
    assert "-h, --hostname NAME" in describe(table)
    with pytest.raises(HelpWanted):
        parse(["--help"], table, interspersed=False)


def test_what_run_makes_of_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIDE", "value")
    line = (
        "--rm -it --name box --hostname host -e A=1 -e OUTSIDE -w /tmp/../srv -v /a:/b:ro --memory 64m --cpus 0.5 "
        "--pids-limit 9 --network none -u 7:8 --storage-opt size=1g --pull always image ls -la --rm"
    )
    wish = run.read(parse(line.split(), run.OPTIONS, interspersed=run.INTERSPERSED))
    assert wish._asdict() == {
        "image": "image", "command": ("ls", "-la", "--rm"), "name": "box", "hostname": "host",
        "env": ("A=1", "OUTSIDE=value"), "workdir": "/srv", "user": "7:8", "volumes": (Volume("/a", "/b", True),),
        "memory": 64 << 20, "cpu_quota": 50_000, "pids": 9, "network": "none", "remove": True, "terminal": True,
        "stdin": True, "quota": 1 << 30, "pull": "always",
    }  # fmt: skip


def test_an_option_wins_over_its_variable() -> None:
    def read(words: str, **environ: str) -> settings.Settings:
        return settings.settings(parse(words.split(), settings.OPTIONS, interspersed=False), environ)

    assert read("").paths == ("/var/lib/fuse-aufs", "/run/fuse-aufs")
    assert read("").storage.driver == "fuse-aufs"
    assert read("", FUSE_AUFS_ROOT="/r", FUSE_AUFS_STATE="/s").paths == ("/r", "/s")
    assert read("--root /o", FUSE_AUFS_ROOT="/r").paths.root == "/o"
    assert read("--storage-driver=vfs", FUSE_AUFS_STORAGE_DRIVER="overlay2").storage.driver == "vfs"
    assert read("", FUSE_AUFS_STORAGE_DRIVER="overlay2", FUSE_AUFS_ROOT="").storage.driver == "overlay2"
    assert [read("", FUSE_AUFS_DEBUG=text).debug for text in ("1", "true", "0", "")] == [True, True, False, False]
    assert read("--debug").debug
    with pytest.raises(UsageError, match="--root is empty"):
        read("--root=")


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0B"), (999, "999B"), (1000, "1kB"), (1_234_567, "1.23MB"), (5e9, "5GB"), (999_600, "1MB")]
)
def test_sizes_for_people(count: int, shown: str) -> None:
    assert human.size(int(count)) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "Less than a second"), (0.4, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "1 minute"),
        (7199, "119 minutes"), (7200, "2 hours"), (86400 * 2, "2 days"), (86400 * 14, "2 weeks"),
        (86400 * 800, "2 years"),
    ],
)  # fmt: skip
def test_durations_for_people(seconds: float, shown: str) -> None:
    assert human.span(seconds) == shown


def test_storage_options_of_a_driver() -> None:
    table = settings.OPTIONS
    line = ["--storage-opt", "dm.fs=xfs", "--storage-opt", "dm.basesize=10G", "ps"]
    assert settings.settings(parse(line, table, interspersed=False), {}).storage.options == {
        "dm.fs": "xfs", "dm.basesize": "10G",
    }  # fmt: skip
    environ = {"FUSE_AUFS_STORAGE_OPT": "dm.fs=ext4,dm.basesize=1G"}
    assert settings.settings(parse(["ps"], table, interspersed=False), environ).storage.options == {
        "dm.fs": "ext4", "dm.basesize": "1G",
    }  # fmt: skip
