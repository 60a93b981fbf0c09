"""What holds for every verb: the options before it, and their environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from runtime.cli.arguments import Given, Option, pairs
from runtime.cli.usage import NotPermitted, UsageError
from runtime.engine.installation import Installation
from runtime.engine.paths import DEFAULT_DRIVER, DEFAULT_ROOT, DEFAULT_STATE, Paths
from runtime.engine.storage.drivers import Storage

OPTIONS = (
    Option("storage-driver", value="NAME", help=f"the driver to run containers on (default {DEFAULT_DRIVER})"),
    Option("storage-opt", value="NAME=VALUE", help="an option of the driver, kept with what it stores (see README)"),
    Option("root", value="DIR", help=f"where images and containers are kept (default {DEFAULT_ROOT})"),
    Option("state", value="DIR", help=f"where running containers are kept (default {DEFAULT_STATE})"),
    Option("debug", short="D", help="say more about errors"),
)


class Settings(NamedTuple):
    paths: Paths
    storage: Storage
    debug: bool

    def installation(self) -> Installation:
        """To be closed, as a context manager is. NotPermitted without root."""
        self.need_root()
        return Installation(self.paths, self.storage)

    @contextmanager
    def recovered(self) -> Iterator[Installation]:
        """The same, after what killed processes left behind of containers has been taken back."""
        from runtime.engine.containers.recovery import recover

        with self.installation() as installation:
            recover(installation)
            installation.close()  # what that has opened: the verb may go on for long
            yield installation

    def need_root(self) -> None:
        if os.geteuid() != 0:
            raise NotPermitted("it needs root: run it as root or with sudo")


def settings(given: Given, environ: Mapping[str, str]) -> Settings:
    """An option wins over its variable, that over the default. An empty variable counts as none."""

    def choose(name: str, default: str) -> str:
        value = given.value(name, environ.get(f"FUSE_AUFS_{name.upper().replace('-', '_')}") or default)
        if not value:
            raise UsageError(f"--{name} is empty")
        return value

    debug = choose("debug", "false").lower() in ("1", "true", "yes")
    paths = Paths.of(choose("root", DEFAULT_ROOT), choose("state", DEFAULT_STATE))
    given_options = given.values("storage-opt") or environ.get("FUSE_AUFS_STORAGE_OPT", "").split(",")
    storage = Storage(choose("storage-driver", DEFAULT_DRIVER), pairs(filter(None, given_options)))
    return Settings(paths, storage, debug)
