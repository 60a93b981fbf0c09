"""`runtime inspect`."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from runtime.cli import human
from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError
from runtime.engine.installation import Installation
from runtime.errors import NoSuchContainer, NoSuchImage, RuntimeFault

SUMMARY = "show all that is known of containers and images, as JSON"
USAGE = "[OPTIONS] NAME|ID [NAME|ID...]"
INTERSPERSED = True
OPTIONS = (
    Option("format", "f", "TEMPLATE", "only these fields, as in '{{.Id}} {{json .Config.Env}}'"),
    Option("type", value="TYPE", help="look among these only: container or image"),
)

_FIELD = re.compile(r"\{\{\s*(json\s+)?((?:\.\w+)+|\.)\s*\}\}")


def main(given: Given, settings: Settings) -> int:
    if not given.arguments:
        raise UsageError("it requires at least 1 argument, a container or an image")
    kind = given.value("type")
    if kind not in ("", "container", "image"):
        raise UsageError(f"invalid type {kind!r}: it is container or image")
    template = given.value("format")
    if re.search(r"\{\{|\}\}", _FIELD.sub("", template)):
        raise UsageError(f"invalid format {template!r}: only {{{{.Field}}}} and {{{{json .Field}}}} are understood")

    from runtime.cli import report

    found, code = [], 0
    with settings.recovered() as installation:
        for reference in given.arguments:
            try:
                found.append(_find(installation, reference, kind))
                if template:
                    print(_shown(_filled(template, found[-1])), flush=True)
            except RuntimeFault as error:
                code = report("", error)
    if not template:
        print(json.dumps(found, indent=4))
    return code


def _find(installation: Installation, reference: str, kind: str) -> dict[str, Any]:
    """A container rather than an image, as docker has it, unless one `kind` is asked for."""
    from runtime.engine.containers import inspect as containers
    from runtime.engine.images import inspect as images

    if kind != "image":
        try:
            return containers.inspect(installation.containers.get(reference))
        except NoSuchContainer:
            if kind:
                raise
    try:
        return images.inspect(installation.images, installation.images.get(reference))
    except NoSuchImage as error:
        if kind:
            raise
        raise NoSuchImage(f"No such object: {reference}") from error


def _filled(template: str, record: dict[str, Any]) -> str:
    def field(match: re.Match[str]) -> str:
        value: Any = record
        for name in filter(None, match[2].split(".")):
            if not isinstance(value, dict) or name not in value:
                raise UsageError(f"there is no field {match[2]} in it")
            value = value[name]
        return json.dumps(value) if match[1] else _plain(value)

    return _FIELD.sub(field, template)


def _shown(text: str) -> str:
    """In a file it is what an image or a user has written; a terminal is not for that to command."""
    if sys.stdout is None or not sys.stdout.isatty():
        return text
    return "\n".join(map(human.printable, text.split("\n")))


def _plain(value: Any) -> str:
    """As Go prints it."""
    match value:
        case bool():
            return str(value).lower()
        case None:
            return "<nil>"
        case list():
            return f"[{' '.join(map(_plain, value))}]"
        case dict():
            return f"map[{' '.join(f'{key}:{_plain(value[key])}' for key in sorted(value))}]"
    return str(value)
