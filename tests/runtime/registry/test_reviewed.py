"""What a review of pulling and pushing found: one test a finding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import RegistryError
from runtime.registry import login
from runtime.registry.credentials import Login
from tests.runtime.registry.conftest import Puller
from tests.runtime.registry.lying import Honest, Server

Lying = Callable[..., Server]


class Thief(Honest):
    """A store that a registry redirects to, and that asks who we are."""

    def do_GET(self) -> None:
        self.note()
        if self.path.startswith("/token"):
            return self.answer(200, b'{"token": "t"}')
        challenge = f'Bearer realm="http://{self.server.host}/token",service="s"'
        return self.error(401, "UNAUTHORIZED", "who are you?", WWW_Authenticate=challenge)


class Redirects(Honest):
    def blob(self, digest: str) -> None:
        self.answer(307, b"", Location=f"{self.server.more['to']}/{digest}")


class RedirectsAll(Honest):
    def do_GET(self) -> None:
        self.note()
        self.answer(307, b"", Location=f"{self.server.more['to']}{self.path}")


def test_a_password_is_the_registry_s_and_not_whom_it_redirects_to(
    puller: Puller, lying: Lying, config: Path
) -> None:
    """CVE-2020-15157: a 401 of a store behind a redirect named the token server that the password went to."""
    thief = lying(Thief)
    registry, front = (lying(handler, to=f"http://{thief.host}") for handler in (Redirects, RedirectsAll))
    mine = Login("me", "secret")
    puller.access().credentials.keep(registry.host, mine)
    puller.refused(f"{registry.host}/x")
    with pytest.raises(RegistryError):
        login.check(puller.access(), front.host, mine)
    assert thief.asked, "they were redirected"
    assert not [path for path in thief.paths() if path.startswith("/token")]
    assert not [headers for _, _, headers in thief.asked if "Authorization" in headers]
