"""`runtime images`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from runtime.cli import human
from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError
from runtime.engine.containers.names import SHORT_ID
from runtime.errors import ImageError

if TYPE_CHECKING:
    from runtime.images.image import Image

SUMMARY = "list images"
USAGE = "[OPTIONS] [REPOSITORY[:TAG]]"
INTERSPERSED = True
OPTIONS = (
    Option("digests", help="what registries know them by"),
    Option("no-trunc", help="ids in full"),
    Option("quiet", "q", help="only ids"),
)

_TITLES = ("REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE")
_DIGEST = _TITLES.index("DIGEST")
_NONE = "<none>"


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) > 1:
        raise UsageError("it takes 1 argument at most, a repository")
    with settings.installation() as installation:
        listed = installation.images.list()
    wanted = _pattern(given.arguments[0]) if given.arguments else ("*", "*")
    rows: list[tuple[str, ...]] = []
    for image in listed:
        shown = image.id if given.flag("no-trunc") else image.id[7 : 7 + SHORT_ID]
        rows += [
            (repository, tag, digest, shown, created(image), human.size(image.size))
            for repository, tag, digest in names(image)
            if fnmatchcase(repository, wanted[0]) and fnmatchcase(tag, wanted[1])
        ]
    if given.flag("quiet"):
        print("".join(f"{shown}\n" for shown in dict.fromkeys(row[3] for row in rows)), end="")
        return 0
    table = [_TITLES, *rows]
    if not given.flag("digests"):
        table = [(*row[:_DIGEST], *row[_DIGEST + 1 :]) for row in table]
    print(human.table(table[0], table[1:]), end="")
    return 0


def names(image: Image) -> Iterator[tuple[str, str, str]]:
    """Repository, tag and digest for each row of an image: each tag, and each repository that has only a digest.

    Of two digests of a repository the index's is shown: what the registry has the name for.
    """
    digests: dict[str, str] = {}
    for name in image.digests:
        repository, _, digest = name.partition("@")
        if digest != image.manifest or repository not in digests:
            digests[repository] = digest
    tagged = [name.rpartition(":") for name in image.tags]  # a registry's port comes before a slash
    yield from ((repository, tag, digests.get(repository, _NONE)) for repository, _, tag in tagged)
    bare = [name for name in digests if name not in {repository for repository, _, _ in tagged}]
    yield from ((repository, _NONE, digests[repository]) for repository in bare)
    if not image.references:
        yield _NONE, _NONE, _NONE


def created(image: Image) -> str:
    try:
        return human.ago(datetime.fromisoformat(image.created).timestamp())
    except (ValueError, OverflowError):
        return "N/A"


def _pattern(text: str) -> tuple[str, str]:
    """What a repository and its tag must match; "*" and "?" are the shell's."""
    from runtime.images.reference import parse

    try:
        name = parse(text)
    except ImageError:
        head, slash, last = text.rpartition("/")
        last, _, tag = last.partition(":")
        return f"{head}{slash}{last}", tag or "*"
    return name.name, name.tag if text.endswith(f":{name.tag}") else "*"
