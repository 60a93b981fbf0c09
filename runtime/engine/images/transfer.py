"""Images from and to registries: `pull` and `push` of an installation."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.engine.installation import Installation
from runtime.errors import InvalidValue
from runtime.events import Listener, Message, unheard
from runtime.images.platforms import Platform
from runtime.images.reference import Reference, parse
from runtime.registry import pull as pulling
from runtime.registry import push as pushing
from runtime.registry.access import Access

_DEFAULT_TAG = Message("Using default tag: latest")


def pull(
    installation: Installation, name: str, environ: Mapping[str, str], tell: Listener = unheard, *,
    platform: Platform | None = None, all_tags: bool = False,
) -> Reference:  # fmt: skip
    """Bring what the registry has under `name`, or all tags of it, into the store, unpacked in the chosen driver.

    `environ` says where registries.toml and the credentials lie. What was pulled; of all tags, it has none. Raises
    InvalidValue and ImageError for a name that cannot be pulled, and as registry.pull does.
    """
    reference = parse(name)
    tagged = ":" in name.rpartition("/")[2] or bool(reference.digest)
    if all_tags and tagged:
        raise InvalidValue(f"all tags are those of a name without a tag or digest, which {name!r} is not")
    access = Access(environ)
    if not tagged and not all_tags:
        tell(_DEFAULT_TAG)
    images = installation.images
    driver = installation.drivers.chosen()  # before anything is transferred: it may not work here
    verb = pulling.pull_all if all_tags else pulling.pull
    verb(images, access, reference, driver, tell, platform=platform)
    return reference._replace(tag="") if all_tags else reference


def push(installation: Installation, name: str, environ: Mapping[str, str], tell: Listener = unheard) -> Reference:
    """Give the image `name` to its registry; what it is there. Raises as registry.push does."""
    reference = parse(name)
    access = Access(environ)
    if name == reference.name:
        tell(_DEFAULT_TAG)
    pushing.push(installation.images, access, reference, tell)
    return reference
