"""`runtime logout`."""

from __future__ import annotations

import os

from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "forget the user name and password for a registry"
USAGE = "[HOST[:PORT]]"
INTERSPERSED = True
OPTIONS: tuple[Option, ...] = ()


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) > 1:
        raise UsageError("it takes 1 argument at most, a registry")

    from runtime.registry.config import normal
    from runtime.registry.credentials import Credentials

    registry = normal(given.arguments[0]) if given.arguments else normal("")
    credentials = Credentials(os.environ)
    if credentials.forget(registry):
        print(f"Removing login credentials for {registry}")
    else:
        print(f"Not logged in to {registry}")
    if other := credentials.where(registry):
        print(f"{other} has a login as well, which is used from now on; 'docker logout' takes it away")
    return 0
