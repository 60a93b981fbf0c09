"""What an installation's driver has, by its own interface."""

from __future__ import annotations

from drivers.api import Kind
from drivers.catalog import open_driver
from tests.runtime.conftest import Runtime


def snapshots(runtime: Runtime) -> dict[str, Kind]:
    """Names and kinds, and nothing else is there: what is nobody's has been taken back."""
    driver = open_driver(runtime.driver, str(runtime.root / "drivers" / runtime.driver))
    try:
        driver.cleanup()
        driver.check_invariants()
        return {info.name: info.kind for info in driver.walk()}
    finally:
        driver.close()
