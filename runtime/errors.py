"""What can go wrong in the runtime, as one tree. Every message is one line that names the thing and, where there
is something to do, what.

    RuntimeFault
    ├── InvalidValue             a value that nothing can be made of: a name, a size, a path
    ├── ConfigError              an OCI spec or image configuration that cannot be run
    ├── StateError               a container is not in the state that the verb needs
    ├── DamagedRecord            what is recorded on disk cannot be understood; nothing of it is removed unasked
    ├── NoSuchImage
    ├── ImageInUse
    ├── ImageError               an archive or reference that cannot become an image
    ├── NoSuchContainer
    ├── NameInUse
    ├── RegistryError            a registry cannot be reached, refuses, or answers with what it must not
    ├── NetworkError             unknown network, or the kernel refused a link, address or rule
    ├── ContainerError           a step of making a container failed: the sentence has step and errno text
    │   ├── ContainerEnded
    │   ├── CommandNotExecutable
    │   └── CommandNotFound
    └── TaskLost                 the process that kept a container is gone

Callers catch the class. What each means to a user, an exit code or an HTTP status, is for the front end to say
(cli/usage.py); nothing below it prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class RuntimeFault(Exception):
    """The base of the tree; str() is the line for the user."""


class InvalidValue(RuntimeFault):
    """A value that nothing can be made of."""


class ConfigError(RuntimeFault):
    """An OCI spec or image configuration that cannot be run."""


class StateError(RuntimeFault):
    """A container is not in the state that the verb needs."""


class DamagedRecord(RuntimeFault):
    """A record on disk is empty, cut, or of something else; the text names the file."""


class NoSuchImage(RuntimeFault):
    """No image answers to a reference or id."""


class ImageInUse(RuntimeFault):
    """An image cannot be removed while a container is made of it."""


class ImageError(RuntimeFault):
    """An archive or reference that cannot become an image."""


class NoSuchContainer(RuntimeFault):
    """No container answers to a name or id, or more than one does."""


class NameInUse(RuntimeFault):
    """Another container has the wished name."""


class RegistryError(RuntimeFault):
    """A registry cannot be reached, refuses, or answers with what it must not."""


class NetworkError(RuntimeFault):
    """An unknown network, or the kernel refused a link, an address or a rule."""


class ContainerError(RuntimeFault):
    """A step of making a container failed."""


class ContainerEnded(ContainerError):
    """The process that a step was about has ended."""


class CommandNotExecutable(ContainerError):
    """The command is there and cannot be executed: no permission, a directory, a wrong format."""


class CommandNotFound(ContainerError):
    """The command is not there."""


class TaskLost(RuntimeFault):
    """The process that kept a container is gone without having recorded how the container ended."""


def sentence(error: BaseException) -> str:
    """One line for the user, and for a terminal: a character that cannot be seen is escaped. A registry, an image or
    a file's name may have put it there. An OSError's text begins with what it is about, and leaves its number out."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
    line = " ".join(text.split("\n")).strip()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


@contextmanager
def step(what: str, kind: type[RuntimeFault] = RuntimeFault) -> Iterator[None]:
    """Say what could not be done, and why, where an OSError comes out of it: a path and the kernel's word for it alone
    tell nobody what was tried. A reader that has gone is not such an error."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise kind(f"cannot {what}: {sentence(error)}") from error


def by_name(name: str, message: str) -> RuntimeFault:
    """The fault that another process reported by its class name; an unknown name gives the base class."""
    found = globals().get(name)
    if isinstance(found, type) and issubclass(found, RuntimeFault):
        return found(message)
    return RuntimeFault(message)
