"""The command line: the options before the verb, the verb's module, and the one place that prints errors and exits.

A verb is a module with SUMMARY, USAGE, OPTIONS, INTERSPERSED and `main(given, settings) -> exit code`. Only the verb
that runs is imported, and it imports what it needs when it needs it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NoReturn, Protocol, cast

from drivers.disk import locks
from runtime.cli import arguments, settings, usage
from runtime.cli.arguments import Given, HelpWanted, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError
from runtime.errors import InvalidValue, RuntimeFault, sentence

# Verb, of one word or two: module. `import` is no name for one.
VERBS = {
    "commit": "commit", "diff": "diff", "exec": "exec", "export": "export", "history": "history", "images": "images",
    "import": "import_", "info": "info", "inspect": "inspect", "load": "load", "login": "login", "logout": "logout",
    "logs": "logs", "ps": "ps", "pull": "pull", "push": "push", "rm": "rm", "rmi": "rmi", "run": "run", "save": "save",
    "stop": "stop", "tag": "tag", "version": "version",
    "container prune": "container_prune", "image prune": "image_prune", "system df": "system_df",
    "system prune": "system_prune",
}  # fmt: skip

# The verbs whose exit code is a command's; a fault of ours is told from it by docker's 125, 126 and 127.
_RUNS_A_COMMAND = ("run", "exec")


class Verb(Protocol):
    SUMMARY: str
    USAGE: str
    OPTIONS: Sequence[Option]
    INTERSPERSED: bool

    def main(self, given: Given, settings: Settings) -> int: ...


def main() -> NoReturn:
    """The program. It ends without the interpreter's: what that would free, the kernel frees in a tenth of the time."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR)  # or the next file opened would be taken for a standard stream
    os.umask(0o077)  # whatever the caller's is: what we make is root's alone, unless we say that it is not
    os.environ.pop("PYTHONINSPECT", None)  # or every program of ours that we start would end in a prompt
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _leave)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        cast(TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    locks.tell_waits(_tell)
    try:
        code = command(sys.argv[1:])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    if sys.stderr is not None:
        sys.stderr.flush()
    os._exit(code)


def _tell(line: str) -> None:
    if sys.stderr is not None:
        print(f"runtime: {line}", file=sys.stderr, flush=True)


def _leave(number: int, _: object) -> NoReturn:
    """End as ctrl-C does: what was begun is undone on the way out."""
    raise SystemExit(128 + number)


def command(words: Sequence[str]) -> int:
    """Do what the command line says; the exit code."""
    verb, debug = "", "--debug" in words or "-D" in words or bool(os.environ.get("FUSE_AUFS_DEBUG"))
    try:
        given = arguments.parse(words, settings.OPTIONS, interspersed=False)
        chosen = settings.settings(given, os.environ)
        debug = chosen.debug
        if not given.arguments:
            raise HelpWanted
        verb, rest = _verb(given.arguments)
        if verb == "help":
            verb, _ = _verb(rest)
            raise HelpWanted
        if verb not in VERBS:
            word, verb = verb, ""
            raise UsageError(f"{word!r} is not a verb of this command")
        module = _module(verb)
        code = module.main(arguments.parse(rest, module.OPTIONS, interspersed=module.INTERSPERSED), chosen)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except HelpWanted:
        try:
            print(_help(verb), end="", flush=True)  # `main` ends without the interpreter's end, which would flush
        except BrokenPipeError:
            return 141
        return 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone.
        return 141
    except Exception as error:
        if debug:
            raise
        return report(verb, error)


def _verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that `words` begin with, and the rest of them."""
    count = 2 if " ".join(words[:2]) in VERBS else 1
    return " ".join(words[:count]), list(words[count:])


def _module(verb: str) -> Verb:
    module: Any = import_module(f"runtime.cli.{VERBS[verb]}")
    return cast(Verb, module)


def report(verb: str, error: Exception, about: str = "") -> int:
    """One line on standard error; the exit code. `about` is what failed, where an OSError does not tell it."""
    from drivers.archive.errors import ArchiveError
    from drivers.errors import DriverError

    if not isinstance(error, (RuntimeFault, DriverError, ArchiveError, OSError)):
        return _defect(error)
    see = f"runtime {verb} --help".replace("  ", " ")
    hint = f": see '{see}'" if isinstance(error, InvalidValue) else ""
    failed = f"{about or verb} failed: " if isinstance(error, OSError) and (about or verb) else ""
    print(f"runtime: {failed}{sentence(error)}{hint}", file=sys.stderr)
    return usage.exit_code(error, runs=verb in _RUNS_A_COMMAND)


def tell(lines: Iterable[object]) -> None:
    """What is worth a line on standard error, and no failure of the verb."""
    for line in lines:
        print(f"runtime: {sentence(RuntimeFault(str(line)))}", file=sys.stderr)


def _defect(error: Exception) -> int:
    what = f"{type(error).__name__}: {sentence(error)}"
    print(f"runtime: internal error: {what} (--debug shows where)", file=sys.stderr)
    return usage.USAGE


def each_of(verb: str, given: Given, what: str, do: Callable[[str], Sequence[str] | None]) -> int:
    """Do it to every argument, and print the lines that it gives, or the argument. Trouble with one does not keep the
    others from it; the exit code is the last trouble's."""
    from drivers.errors import DriverError

    if not given.arguments:
        raise UsageError(f"it requires at least 1 argument, a {what}")
    code = 0
    for reference in given.arguments:
        try:
            lines = do(reference)
        except (RuntimeFault, DriverError, OSError) as error:
            code = report("", error, f"{verb} {reference}")
        else:
            print("\n".join([reference] if lines is None else lines), flush=True)
    return code


def _help(verb: str) -> str:
    if verb not in VERBS:
        verbs = "".join(f"  {name:17}{_module(name).SUMMARY}\n" for name in VERBS)
        return (
            "Usage: runtime [OPTIONS] VERB\n\nRun containers on a storage driver of choice.\n\n"
            f"Verbs:\n{verbs}\nOptions (each also as FUSE_AUFS_… in the environment):\n"
            f"{arguments.describe(settings.OPTIONS)}"
        )
    module = _module(verb)
    summary = module.SUMMARY
    return (
        f"Usage: runtime {verb} {module.USAGE}\n\n{summary[0].upper()}{summary[1:]}.\n\n"
        f"Options:\n{arguments.describe(module.OPTIONS)}"
    )
