"""The networks by name. A driver of networks is a class that a Network is made by, of the directory for what it keeps;
a new one is a module and a line here. It is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module

from runtime.engine.networks.network import Network
from runtime.errors import NetworkError

_DRIVERS = {
    "bridge": ("runtime.engine.networks.bridge", "BridgeNetwork"),
    "none": ("runtime.engine.networks.none", "NoneNetwork"),
    "host": ("runtime.engine.networks.host", "HostNetwork"),
}
NAMES = tuple(_DRIVERS)


def open_network(name: str, root: str) -> Network:
    """The network called `name`; `root` is the directory of its leases. NetworkError when there is none."""
    if name not in _DRIVERS:
        raise NetworkError(f"no such network: {name} (there are {', '.join(NAMES)})")
    module, driver = _DRIVERS[name]
    network: Network = getattr(import_module(module), driver)(root)
    return network
