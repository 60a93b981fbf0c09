"""`runtime login`."""

from __future__ import annotations

import os
import sys

from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "check and keep a user name and password for a registry"
USAGE = "[OPTIONS] [HOST[:PORT]]"
INTERSPERSED = True
# There is no --password VALUE: every process of the machine could read it in /proc.
OPTIONS = (
    Option("password-stdin", help="read the password from standard input"),
    Option("username", "u", "NAME", "the user name (default: ask)"),
)
_LONGEST = 64 << 10  # bytes of a password: some are tokens


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) > 1:
        raise UsageError("it takes 1 argument at most, a registry")

    from runtime.registry.access import Access
    from runtime.registry.config import normal
    from runtime.registry.credentials import Login
    from runtime.registry.login import check

    access = Access(os.environ)
    registry = normal(given.arguments[0]) if given.arguments else normal("")
    access.registries.server(registry)  # UsageError before anything is asked
    login = Login(*_read(given, registry))
    check(access, registry, login)
    access.credentials.keep(registry, login)
    print(f"Login Succeeded (kept in {access.credentials.path})")
    return 0


def _read(given: Given, registry: str) -> tuple[str, str]:
    """User name and password, asked for where they were not given."""
    user = given.value("username")
    if given.flag("password-stdin"):
        if not user:
            raise UsageError("--password-stdin needs --username")
        data = sys.stdin.buffer.read(_LONGEST + 1)
        password = data.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
    elif not sys.stdin.isatty():
        raise UsageError("cannot ask for a password without a terminal: use --password-stdin")
    else:
        from getpass import getpass

        try:
            if not user:
                print(f"Username for {registry}: ", end="", flush=True)
                user = sys.stdin.readline().strip()
            password = getpass("Password: ")
        except EOFError:
            password = ""
    if not user or not password or len(password) > _LONGEST:
        raise UsageError("the user name or the password is empty, or too long")
    return user, password
