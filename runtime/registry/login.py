"""Whether a registry takes a login: asked before it is kept."""

from __future__ import annotations

from runtime.errors import RegistryError
from runtime.registry.access import Access
from runtime.registry.auth import Authorizer
from runtime.registry.credentials import Login
from runtime.registry.failures import Answered
from runtime.registry.transport import same_origin


def check(access: Access, registry: str, login: Login) -> None:
    """RegistryError when it refuses, or is not a registry. One that asks nobody who they are takes every login."""
    endpoint = access.registries.endpoints(registry)[-1]
    url = f"{endpoint.server.url}/v2/"
    status = 0
    with access.transport() as transport:
        authorizer = Authorizer(transport, endpoint, login, ())
        for last in (False, True):
            used = authorizer.header()
            headers = {"Authorization": used} if used else {}
            with transport.request("GET", url, headers, server=endpoint.server) as response:
                status = response.status
                challenges = response.headers.get_all("WWW-Authenticate") or []
                answered = same_origin(response.url, endpoint.server.url)  # CVE-2020-15157, as in Client.request
                response.read()
            if status != 401 or last or not answered or not authorizer.renew(challenges, used):
                break
    if status in (401, 403):
        raise Answered(f"{registry}: incorrect username or password", status=status)
    if status != 200:
        raise RegistryError(f"{registry} answers {status} at {url}: is it a registry?")
