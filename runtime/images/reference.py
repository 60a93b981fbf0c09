"""References: docker's short form of an image's name, `[HOST/]PATH[:TAG][@sha256:HEX]`.

The grammar is that of distribution/reference. Docker Hub's own prefix is not written: `docker.io/library/busybox` and
`busybox` are one reference. A digest is a manifest's or an index's, as a registry has it; beside a digest, a tag is a
note to the reader and names nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from runtime.errors import ImageError

HUB = "docker.io"

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_PART = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ID = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HUB = (HUB, "index.docker.io")
_OFFICIAL = "library"  # what Docker Hub keeps names of one part under
_NAME_LENGTH = 255
_LENGTH = _NAME_LENGTH + 240  # with the longest tag, a digest, and the prefix that is left out


class Reference(NamedTuple):
    """`tag` is "" when there is a digest and no tag; `digest` is "" or "sha256:HEX"."""

    name: str
    tag: str
    digest: str = ""

    def __str__(self) -> str:
        """Docker's familiar form, which parse() takes."""
        return f"{self.name}{self.tag and ':'}{self.tag}{self.digest and '@'}{self.digest}"

    @property
    def registry(self) -> str:
        """HOST or HOST:PORT; "docker.io" where none is written."""
        host, slash, _ = self.name.partition("/")
        return host if slash and _is_host(host) else HUB

    @property
    def repository(self) -> str:
        """The path by which the registry knows it: "library/busybox", "me/app"."""
        host, slash, path = self.name.partition("/")
        if not slash:
            return f"{_OFFICIAL}/{self.name}"
        return path if _is_host(host) else self.name

    @property
    def full(self) -> str:
        """Docker's whole form: "docker.io/library/busybox:latest"."""
        rest = f"{self.tag and ':'}{self.tag}{self.digest and '@'}{self.digest}"
        return f"{self.registry}/{self.repository}{rest}"

    @property
    def key(self) -> str:
        """What the store keeps it under: `NAME:TAG`, or `NAME@DIGEST` when there is a digest."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def parse(text: str) -> Reference:
    """The reference that `text` is, tag `latest` where there is neither tag nor digest. ImageError says what is wrong
    with it."""
    if not text:
        raise ImageError("an image's name is empty")
    if len(text) > _LENGTH:
        raise ImageError(f"an image's name has {len(text)} characters, {_NAME_LENGTH} are allowed")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ImageError(f"{text!r} has no valid digest behind its '@': it is sha256: and 64 hexadecimal digits")
    head, slash, last = rest.rpartition("/")
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
    if host in _HUB and not (len(parts) > 1 and _is_host(parts[0])):  # whose path would be taken for a host
        host = ""
    if not host and len(parts) == 2 and parts[0] == _OFFICIAL:
        parts = parts[1:]
    name = "/".join(filter(None, [host, *parts]))
    if _ID.fullmatch(name):
        raise ImageError(f"{text!r} is an image id and no name")
    if len(name) > _NAME_LENGTH:
        raise ImageError(f"an image's name has {len(name)} characters, {_NAME_LENGTH} are allowed")
    return Reference(name, tag or ("" if digest else "latest"), digest)


def short(digest: str) -> str:
    """What users see of a digest."""
    return digest.removeprefix("sha256:")[:12]


def _is_host(part: str) -> bool:
    return "." in part or ":" in part or part == "localhost" or part != part.lower()
