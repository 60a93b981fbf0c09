"""`runtime import --change`: instructions of a Dockerfile, made into the `config` object of an image configuration.

    CMD ["sh", "-c", "x"]  or  CMD x y     ENTRYPOINT, the same two forms     ENV K=V K2="V 2"  or  ENV K V
    WORKDIR /DIR     USER NAME[:GROUP]     LABEL K=V     EXPOSE 80/tcp     VOLUME /DIR     STOPSIGNAL SIGTERM
"""

from __future__ import annotations

import json
import posixpath
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from runtime.errors import InvalidValue

Config = dict[str, Any]


def parse(instructions: Iterable[str], base: Mapping[str, Any] | None = None) -> Config:
    """The configuration that `instructions` make of `base`, in their order. InvalidValue names the wrong one."""
    config: Config = dict(base or {})
    for instruction in instructions:
        verb, _, rest = instruction.strip().partition(" ")
        rest = rest.strip()
        apply = _INSTRUCTIONS.get(verb.upper())
        if apply is None:
            raise InvalidValue(f"{instruction!r} is no change for an image; use one of {', '.join(_INSTRUCTIONS)}")
        if not rest:
            raise InvalidValue(f"{instruction!r} has no value")
        try:
            apply(config, rest)
        except ValueError as error:
            raise InvalidValue(f"{instruction!r}: {error}") from None
    return config


def _command(key: str) -> Callable[[Config, str], None]:
    def apply(config: Config, rest: str) -> None:
        config[key] = _exec_form(rest) if rest.startswith("[") else ["/bin/sh", "-c", rest]

    return apply


def _exec_form(rest: str) -> list[str]:
    try:
        words = json.loads(rest)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError('write it as a JSON array of strings, like ["/bin/sh", "-c", "x"]')
    return words


def _pairs(rest: str) -> Iterable[tuple[str, str]]:
    """K=V words, or the old form `K V` for a single one."""
    words = shlex.split(rest)
    if "=" not in words[0]:
        name, _, value = rest.partition(" ")
        return [(name, value.strip())]
    pairs = [word.partition("=") for word in words]
    if any(not name or not equals for name, equals, _ in pairs):
        raise ValueError("write each as NAME=VALUE")
    return [(name, value) for name, _, value in pairs]


def _env(config: Config, rest: str) -> None:
    kept = [entry for entry in config.get("Env", []) if entry.partition("=")[0] not in dict(_pairs(rest))]
    config["Env"] = [*kept, *(f"{name}={value}" for name, value in _pairs(rest))]


def _labels(config: Config, rest: str) -> None:
    config["Labels"] = config.get("Labels", {}) | dict(_pairs(rest))


def _workdir(config: Config, rest: str) -> None:
    config["WorkingDir"] = posixpath.normpath(posixpath.join(config.get("WorkingDir", "/"), rest))


def _word(key: str) -> Callable[[Config, str], None]:
    def apply(config: Config, rest: str) -> None:
        if len(rest.split()) > 1:
            raise ValueError("it has one value")
        config[key] = rest

    return apply


def _set(key: str) -> Callable[[Config, str], None]:
    """A JSON object whose keys are the set, as Docker's configuration has them."""

    def apply(config: Config, rest: str) -> None:
        words = _exec_form(rest) if rest.startswith("[") else rest.split()
        config[key] = config.get(key, {}) | {word: {} for word in words}

    return apply


_INSTRUCTIONS: dict[str, Callable[[Config, str], None]] = {
    "CMD": _command("Cmd"), "ENTRYPOINT": _command("Entrypoint"), "ENV": _env, "LABEL": _labels, "WORKDIR": _workdir,
    "USER": _word("User"), "STOPSIGNAL": _word("StopSignal"), "EXPOSE": _set("ExposedPorts"), "VOLUME": _set("Volumes"),
}  # fmt: skip
