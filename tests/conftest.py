"""What every test gets: a machine of its own as far as mounts and links go, skips with reasons, leak checks, unions."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.contracts", "tests.mounting", "tests.trees")

from tests import isolation, leaks  # noqa: E402
from tests.capabilities import missing  # noqa: E402
from tests.mounting import TRANSPORTS, Union  # noqa: E402

isolation.isolate()

_ERROR = pytest.StashKey[BaseException]()  # that a test ended with


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*capabilities): skip, with the reason, where one of them is missing")


def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = [capability for marker in item.iter_markers("needs") for capability in marker.args]
    if "pyfuse3" in item.name.partition("[")[2]:  # as a parameter: the transport, or what is served by it
        needed.append("pyfuse3")
    for capability in needed:
        if reason := missing(capability):
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, object, object]:
    report = yield
    if call.when != "teardown" and call.excinfo and not isinstance(call.excinfo.value, pytest.skip.Exception):
        item.stash[_ERROR] = call.excinfo.value
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Before the fixtures', which unmount; and after its error was shown, or looked at by --pdb."""
    if error := item.stash.get(_ERROR, None):
        leaks.let_go(error)


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set up first and torn down last of a test's own fixtures: whatever wider fixtures hold was there before."""
    basetemp = os.path.realpath(tmp_path_factory.getbasetemp())
    groups = "runtime" in request.path.relative_to(request.config.rootpath).parts
    before = leaks.belongings(basetemp, groups=groups)
    yield
    left = leaks.left_behind(before, basetemp, groups=groups, failed=_ERROR in request.node.stash)
    if left:
        pytest.fail("\n".join([f"{request.node.name} left behind:", *left]), pytrace=False)


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Tests that mount a union run on each. One that has nothing to gain from that says
    `@pytest.mark.parametrize("transport", ["auto"])`, or which one it is about."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def mount_union(tmp_path: Path, transport: str) -> Iterator[Callable[..., Union]]:
    """`mount_union("lower", "upper")` mounts directories below tmp_path, bottom to top (made if missing).

    What is mounted is unmounted after the test, and the server's log searched for exceptions.
    """
    unions: list[Union] = []

    def mount(*branches: str, options: tuple[str, ...] = ()) -> Union:
        home = tmp_path / f"union{len(unions)}" if unions else tmp_path
        paths = [os.path.join(tmp_path, branch) for branch in branches]
        for path in paths:
            os.makedirs(path.removesuffix("=ro").removesuffix("=rw").removesuffix("=rr"), exist_ok=True)
        union = Union(str(home), paths, options, transport=transport)
        unions.append(union)
        return union.mount()

    yield mount
    for union in reversed(unions):
        union.close()
