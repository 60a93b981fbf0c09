"""Options as docker's command line has them, from one table a verb.

`-it` is `-i -t`; `-eA=1`, `-e A=1`, `--env A=1` and `--env=A=1` are the same; a flag may be switched off with `=false`.
Where a verb takes a command of somebody else's, options end at its first argument.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from runtime.cli.usage import UsageError


class Option(NamedTuple):
    """One row. Without a `value` (its name in the help) the option is a flag."""

    name: str
    short: str = ""
    value: str = ""
    help: str = ""


HELP = Option("help", "h", help="show this text")


class HelpWanted(Exception):
    """--help was among the options."""


class Given(NamedTuple):
    """What was found on a command line: values by option name, in order; flags as "true" and "false"."""

    options: dict[str, list[str]]
    arguments: list[str]

    def flag(self, name: str) -> bool:
        return self.options.get(name, ["false"])[-1] == "true"

    def value(self, name: str, default: str = "") -> str:
        return self.options.get(name, [default])[-1]

    def values(self, name: str) -> list[str]:
        return self.options.get(name, [])


def parse(words: Sequence[str], table: Sequence[Option], *, interspersed: bool) -> Given:
    """Raises UsageError, HelpWanted. With `interspersed`, options may follow arguments; `--` ends them in any case."""
    long = {option.name: option for option in (*table, HELP)}
    short = {option.short: option for option in (HELP, *table) if option.short}  # `run` has its own -h
    given = Given({}, [])
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            given.arguments.extend(left)
            break
        if word == "-" or not word.startswith("-"):
            given.arguments.append(word)
            if not interspersed:
                given.arguments.extend(left)
                break
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if name not in long:
                raise UsageError(f"unknown flag: --{name}")
            _take(given, long[name], value if equals else None, left, f"--{name}")
        else:
            _cluster(given, short, word, left)
    return given


def _cluster(given: Given, short: dict[str, Option], word: str, left: list[str]) -> None:
    letters = word[1:]
    while letters:
        option = short.get(letters[0])
        if option is None:
            raise UsageError(f"unknown shorthand flag: {letters[0]!r} in {word}")
        rest, letters = letters[1:], letters[1:]
        if option.value:
            _take(given, option, rest.removeprefix("=") if rest else None, left, f"{word[:2]}")
            return
        if rest.startswith("="):
            _take(given, option, rest[1:], left, word)
            return
        _take(given, option, None, left, word)


def _take(given: Given, option: Option, value: str | None, left: list[str], shown: str) -> None:
    if option is HELP:
        raise HelpWanted
    if option.value:
        if value is None:
            if not left:
                raise UsageError(f"flag needs an argument: {shown}")
            value = left.pop(0)
    elif value is None or value in ("true", "1"):
        value = "true"
    elif value in ("false", "0"):
        value = "false"
    else:
        raise UsageError(f"invalid value {value!r} for the flag {shown}: it is true or false")
    given.options.setdefault(option.name, []).append(value)


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """The NAME=VALUE of `--storage-opt` as a dictionary; the last of a name counts."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"invalid storage option {text!r}: write NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def conceal(values: Iterable[str]) -> None:
    """Cross out what comes after NAME= in this process's command line, which every user of the machine can read for as
    long as it runs (proc(5))."""
    from unionfs.linux import processes  # late: only two verbs have such values

    memory, _ = processes.invocation()
    text = memory.tobytes()
    for value in map(os.fsencode, values):
        name, equals, secret = value.partition(b"=")
        text = text.replace(value + b"\0", name + equals + b"*" * len(secret) + b"\0")
    memory[:] = text


def describe(table: Sequence[Option]) -> str:
    """The options as lines for a help text."""
    rows = []
    taken = {option.short for option in table}
    for option in sorted((*table, HELP), key=lambda option: option.name):
        short = "" if option is HELP and option.short in taken else option.short
        letter = f"-{short}, " if short else "    "
        rows.append((f"  {letter}--{option.name} {option.value}".rstrip(), option.help))
    width = max(len(left) for left, _ in rows) + 3
    return "".join(f"{left:{width}}{right}\n" for left, right in rows)
