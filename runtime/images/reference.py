"""References: docker's short form of an image's name, `[HOST/]PATH[:TAG]`.

The grammar is that of distribution/reference. Docker Hub's own prefix is not written: `docker.io/library/busybox` and
`busybox` are one reference. A digest (`NAME@sha256:…`) names what a registry has, and no imported image has one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from runtime.errors import ImageError

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_PART = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ID = re.compile(r"[0-9a-f]{64}")
_HUB = ("docker.io", "index.docker.io")
_NAME_LENGTH = 255
_LENGTH = _NAME_LENGTH + 160  # with the longest tag, and the prefix that is left out


class Reference(NamedTuple):
    name: str
    tag: str

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"


def parse(text: str) -> Reference:
    """The reference that `text` is, tag `latest` where there is none. ImageError says what is wrong with it."""
    if not text:
        raise ImageError("an image's name is empty")
    if len(text) > _LENGTH:
        raise ImageError(f"an image's name has {len(text)} characters, {_NAME_LENGTH} are allowed")
    if "@" in text:
        raise ImageError(f"{text!r} has a digest, which only images of a registry have; use NAME[:TAG]")
    head, slash, last = text.rpartition("/")
    last, colon, tag = last.partition(":")  # a colon before the last slash is a port's
    if colon and not _TAG.fullmatch(tag):
        raise ImageError(f"{text!r} has no valid tag: letters, digits, '_', '.' and '-' it has, 128 at most")
    parts = [*head.split("/"), last] if slash else [last]
    host = parts.pop(0) if len(parts) > 1 and _is_host(parts[0]) else ""
    if host and not _HOST.fullmatch(host):
        raise ImageError(f"{text!r} has no valid host before its first '/'")
    for part in parts:
        if not _PART.fullmatch(part):
            why = "lowercase letters and digits, with '.', '_' or '-' between them, are allowed"
            raise ImageError(f"{text!r} is no valid image name: {why}")
    if host in _HUB:
        host = ""
    if not host and len(parts) == 2 and parts[0] == "library":
        parts = parts[1:]
    name = "/".join(filter(None, [host, *parts]))
    if _ID.fullmatch(name):
        raise ImageError(f"{text!r} is an image id and no name")
    if len(name) > _NAME_LENGTH:
        raise ImageError(f"an image's name has {len(name)} characters, {_NAME_LENGTH} are allowed")
    return Reference(name, tag or "latest")


def _is_host(part: str) -> bool:
    return "." in part or ":" in part or part == "localhost" or part != part.lower()
