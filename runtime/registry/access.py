"""What one verb needs to talk to registries: where they are, who we are, how patient we are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from runtime.errors import ImageError, RegistryError, sentence
from runtime.images.reference import Reference
from runtime.registry.client import Client
from runtime.registry.config import Endpoint, Registries
from runtime.registry.credentials import Credentials
from runtime.registry.retries import Patience
from runtime.registry.transport import Transport

_Result = TypeVar("_Result")


class Access:
    """`environ` says where registries.toml and auth.json lie, and which proxies there are. RegistryError for a
    file that cannot be understood."""

    def __init__(self, environ: Mapping[str, str], patience: Patience | None = None) -> None:
        self.registries = Registries(environ)
        self.credentials = Credentials(environ)
        self._environ, self._patience = environ, patience

    @contextmanager
    def transport(self) -> Iterator[Transport]:
        transport = Transport(self.registries, self._environ)
        try:
            yield transport
        finally:
            transport.close()

    @contextmanager
    def client(
        self, endpoint: Endpoint, reference: Reference, action: str, sources: Sequence[str] = ()
    ) -> Iterator[Client]:
        """`action` is "pull" or "push"."""
        login = self.credentials.find(endpoint.name)
        with self.transport() as transport:
            # What waits between two tries hears of an abort at once.
            patience = self._patience or Patience(sleep=transport.aborted.wait)
            yield Client(
                transport, endpoint, login, reference.repository,
                name=reference.name, action=action, sources=sources, patience=patience,
            )  # fmt: skip

    def pulling(
        self, reference: Reference, do: Callable[[Client], _Result], skipped: Callable[[str], object]
    ) -> _Result:
        """What `do` gives at the first of the registry's mirrors that has no trouble with it, else at the registry
        itself. `skipped` is told of the others."""
        *mirrors, own = self.registries.endpoints(reference.registry)
        for endpoint in mirrors:
            try:
                with self.client(endpoint, reference, "pull") as client:
                    return do(client)
            except (RegistryError, ImageError) as error:  # or what it has is refused
                skipped(f"mirror {endpoint.name}: {sentence(error)}; going on without it")
        with self.client(own, reference, "pull") as client:
            return do(client)
