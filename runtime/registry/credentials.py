"""auth.json: user names and passwords by registry, in the form of docker's config.json ("auths", base64).

It lies in $FUSE_AUFS_CONFIG, else in $XDG_CONFIG_HOME/fuse-aufs, else in ~/.config/fuse-aufs: a user's own, mode 0600.
What it lacks is looked up in docker's own ~/.docker/config.json ($DOCKER_CONFIG), which is never written; docker's
credential helpers are not run.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from drivers.disk import durable, locks
from runtime.errors import InvalidValue, RegistryError
from runtime.registry.config import HUB, normal

_HUB_KEY = "https://index.docker.io/v1/"  # docker's, so that the file can serve both


class Login(NamedTuple):
    """A user's `password`, or a `refresh` token in its place ("identitytoken")."""

    user: str
    password: str
    refresh: str = ""


class Credentials:
    """Any number of objects and processes may share the files. RegistryError for one that cannot be understood."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        home = environ.get("HOME") or os.path.expanduser("~")
        config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
        directory = environ.get("FUSE_AUFS_CONFIG") or os.path.join(config, "fuse-aufs")
        self.path = os.path.join(directory, "auth.json")
        self._docker = os.path.join(environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker"), "config.json")

    def find(self, registry: str) -> Login | None:
        return self._find(registry)[0]

    def where(self, registry: str) -> str:
        """The file that find() has a login from, or ""."""
        return self._find(registry)[1]

    def _find(self, registry: str) -> tuple[Login | None, str]:
        for path in (self.path, self._docker):
            for key, entry in _auths(_load(path), path).items():
                if normal(key) == registry and (login := _login(entry, path)):
                    return login, path
        return None, ""

    def keep(self, registry: str, login: Login) -> None:
        """Remember it, in place of what was there. InvalidValue for a user name that the file's form cannot hold."""
        if ":" in login.user:
            raise InvalidValue(f"a user name cannot contain ':', as {login.user!r} does")
        pair = f"{login.user}:{login.password}".encode("utf-8", "surrogateescape")
        key = _HUB_KEY if registry == HUB else registry
        with self._changed() as document:
            self._forget(document, registry)
            document.setdefault("auths", {})[key] = {"auth": base64.b64encode(pair).decode()}

    def forget(self, registry: str) -> bool:
        """Whether there was something to forget."""
        if not os.path.exists(self.path):
            return False
        with self._changed() as document:
            return self._forget(document, registry)

    def _forget(self, document: dict[str, Any], registry: str) -> bool:
        auths = _auths(document, self.path)
        known = [key for key in auths if normal(key) == registry]
        for key in known:
            del auths[key]
        return bool(known)

    @contextlib.contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        """The document, replaced when the block ends well; two at once take turns."""
        path = os.path.realpath(self.path)  # a link stays one
        directory = os.path.dirname(path)
        durable.make_directories(directory)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            locks.lock(lock, directory)
            document = _load(path)
            yield document
            durable.replace(path, json.dumps(document, indent=2).encode() + b"\n")
        finally:
            os.close(lock)


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise RegistryError(f"{path} is damaged: it is no JSON object; restore it, or remove it and log in again")
    return document


def _auths(document: dict[str, Any], path: str) -> dict[str, Any]:
    auths = document.get("auths") or {}
    if not isinstance(auths, dict):
        raise RegistryError(f'{path} is damaged: "auths" is no object; restore it, or remove it and log in again')
    return auths


def _login(entry: Any, path: str) -> Login | None:
    """None for an entry that says nothing, as docker leaves where a credential helper has the password."""
    if not isinstance(entry, dict):
        return None
    refresh = entry.get("identitytoken")
    try:
        pair = base64.b64decode(entry.get("auth") or "", validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, ValueError, TypeError):
        raise RegistryError(f'{path} is damaged: an "auth" is no base64; log in again') from None
    user, colon, password = pair.partition(":")
    if refresh and isinstance(refresh, str):
        return Login(user, "", refresh)
    return Login(user, password.rstrip("\0")) if colon else None
