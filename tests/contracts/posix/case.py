"""The table and how a case enters it, with what most cases need: expected errors and other users."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.trees import Tree

CASES: dict[str, Case] = {}

# Names that cases create: subjects put whiteouts over something there.
FRESH = ("new", "new2", "new-dir")

USER, OTHER = 1000, 1001  # two unprivileged users, each with a group of the same number


class Case(NamedTuple):
    name: str
    tree: Tree
    run: Callable[[str], None]
    needs: tuple[str, ...]


def case(tree: Tree | None = None, *, needs: tuple[str, ...] = ()) -> Callable[[Callable[[str], None]], Any]:
    """Put the decorated function into the table; it starts with `tree` in its directory and with umask 022."""

    def enter(function: Callable[[str], None]) -> Callable[[str], None]:
        name = function.__name__
        assert name not in CASES, f"two cases are named {name}"
        CASES[name] = Case(name, tree or {}, function, needs)
        return function

    return enter


@contextmanager
def fails(code: int) -> Iterator[None]:
    """The block must raise OSError with this errno."""
    try:
        yield
    except OSError as error:
        assert error.errno == code, f"{error}, expected {errno.errorcode[code]}"
    else:
        raise AssertionError(f"it succeeded, expected {errno.errorcode[code]}")


def in_child(function: Callable[[], Any], *, uid: int | None = None, groups: tuple[int, ...] = ()) -> Any:
    """What `function` returns, run in a forked process as user and group `uid`; what it raises is raised here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid is not None:
                os.setgroups(groups)
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            outcome: tuple[bool, Any] = (True, function())
        except BaseException as error:
            outcome = (False, error)
        try:
            os.write(writer, pickle.dumps(outcome))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    good, value = pickle.loads(answer)
    if not good:
        raise value
    return value


def content(path: str) -> bytes:
    with open(path, "rb") as source:
        return source.read()


def put(path: str, data: bytes, flags: int = os.O_CREAT | os.O_TRUNC, mode: int = 0o666) -> None:
    """Write `data` to `path` with one write(2)."""
    fd = os.open(path, os.O_WRONLY | flags, mode)
    try:
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)


@contextmanager
def opened(path: str, flags: int, mode: int = 0o666) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)
