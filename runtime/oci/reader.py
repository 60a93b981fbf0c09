"""Reading one JSON object of a configuration key by key, so that what nobody reads is noticed."""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from typing import Any, NoReturn

from runtime.errors import ConfigError


class Reader:
    """One JSON object of the configuration; what nobody asked for is refused by `end`."""

    def __init__(self, value: Any, place: str) -> None:
        self.place = place
        if not isinstance(value, dict):
            raise ConfigError(f"{place or 'config'}: expected an object, not {value!r}")
        self._left = dict(value)

    def fail(self, key: str, text: str) -> NoReturn:
        raise ConfigError(f"{self.name(key)}: {text}")

    def name(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def _take(self, key: str, types: type | tuple[type, ...], words: str, default: Any) -> Any:
        value = self._left.pop(key, None)
        if value is None:
            return default
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            self.fail(key, f"expected {words}, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        value: str | None = self._take(key, str, "a string", default)
        if value is not None and "\0" in value:
            self.fail(key, "a zero byte is not allowed here")
        return value

    def path(self, key: str) -> str:
        """An absolute path, normalised without looking at the file system."""
        value = self.text(key)
        if not value:
            self.fail(key, "a path is needed")
        if not value.startswith("/"):
            self.fail(key, f"{value!r} is not an absolute path")
        return "/" + posixpath.normpath(value).lstrip("/")

    def flag(self, key: str) -> bool:
        return bool(self._take(key, bool, "true or false", False))

    def number(self, key: str, least: int, most: int = 2**63 - 1) -> int | None:
        value: int | None = self._take(key, int, "a whole number", None)
        if value is not None and not least <= value <= most:
            self.fail(key, f"{value} is not between {least} and {most}")
        return value

    def ident(self, key: str) -> int:
        return self.number(key, 0, 2**32 - 2) or 0

    def array(self, key: str) -> list[Any]:
        value: list[Any] = self._take(key, (list, tuple), "a list", [])
        return list(value)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.array(key)
        for value in values:
            if not isinstance(value, str) or "\0" in value:
                self.fail(key, f"{value!r} is not a string that a process can be given")
        return tuple(values)

    def object(self, key: str) -> Reader:
        return Reader(self._take(key, dict, "an object", {}), self.name(key))

    def objects(self, key: str) -> list[Reader]:
        return [Reader(value, f"{self.name(key)}[{n}]") for n, value in enumerate(self.array(key))]

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        table = self._take(key, dict, "an object", {})
        for name, value in table.items():
            if not isinstance(name, str) or not isinstance(value, str):
                self.fail(key, f"{name!r} must have a string, not {value!r}")
        return tuple(table.items())

    def end(self, ignored: Collection[str] = ()) -> None:
        for key, value in self._left.items():
            if key not in ignored and value not in (None, "", [], {}, False):
                self.fail(key, "this runtime does not honour it, and will not run a container as if it did")
