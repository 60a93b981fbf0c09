"""The POSIX table on a plain directory (which tests the table), on kernel overlayfs, and on unions that differ in where
each case's starting tree lies and in the transport."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.capabilities import missing
from tests.contracts.posix import CASES
from tests.mounting import TRANSPORTS
from tests.trees import build
from tests.unionfs.settings import SETTINGS, decoys, prepare_union, split
from unionfs.linux import mounts

# Name of a union -> its setting, and the options of the mount.
UNIONS = {f"{setting}-{transport}": (setting, f"transport={transport}")
          for transport in TRANSPORTS for setting in SETTINGS}
UNIONS |= {f"{setting}-{which}": (setting, f"transport=direct,passthrough={which}")
           for setting in ("lower-only", "merged") for which in ("none", "all")}

OLD_DATA = "assert b'old data' == b'new data'"


class Differs(NamedTuple):
    """How a case fails: the errno of its OSError, or the first line of its AssertionError; and why."""

    failure: int | str
    why: str


# What kernel overlayfs, with redirect_dir, index and all names in its lower layer, does otherwise.
# See Documentation/filesystems/overlayfs.rst, "Non-standard behavior" and "Renaming directories".
OVERLAYFS_DIFFERS = {
    "a_read_only_map_sees_writes": Differs(OLD_DATA, "a map of the lower file is not moved to its copy"),
    "read_after_unlink": Differs(
        "assert 1 == 0", "a descriptor of an unlinked lower file shows the lower link count"),
    "link_counts_of_directories": Differs(
        "assert 2 == 0", "a descriptor of a removed lower directory shows the lower link count"),
    "rename_over_a_file": Differs(
        "assert 1 == 0", "a descriptor of a replaced lower file shows the lower link count"),
    "open_again_through_proc": Differs(errno.EEXIST, "an unlinked lower file cannot be copied up"),
    "long_names_that_are_renamed": Differs(errno.EXDEV, "a redirect is at most 256 bytes long (redirect_max)"),
}

# What differs where the kernel reads all lower files by itself (unionfs/serve/lending.py): who opened one before its
# copy-up has opened the lower file.
ALL_LENT_DIFFERS = {
    "a_read_only_map_sees_writes": Differs(OLD_DATA, "a map of the lower file is not moved to its copy"),
    "a_read_only_descriptor_sees_writes": Differs(OLD_DATA, "an open lower file is not moved to its copy"),
    "written_before_unlink_read_by_another_descriptor": Differs(
        "assert b'whole' == b'Whole!'", "an open lower file is not moved to its copy"),
    "open_again_through_proc": Differs(
        errno.ESTALE, "a file that is open for reading and unlinked cannot be looked up again to write to it"),
    "a_lock_outlives_a_write": Differs(
        "assert False is True", "locks are on the kernel's inode, and the copy's is another"),
}

DIFFERS = {"overlayfs": OVERLAYFS_DIFFERS, "lower-only-all": ALL_LENT_DIFFERS}


@pytest.fixture(scope="module", params=["plain", "overlayfs", *UNIONS])
def subject(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """(kind, a directory in which every case has its own); all of them in one mount.

    It is not below pytest's temporary directory, which other users cannot enter; on tmpfs, where that can hold all
    there is to test, because of the thousands of files.
    """
    name = request.param
    if name in UNIONS and (reason := missing("fuse")):
        pytest.skip(reason)
    if name == "overlayfs" and (reason := missing("overlay")):
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="posix-") as home, contextlib.ExitStack() as stack:
        if not missing("tmpfs-xattr"):
            mounts.mount("posix", home, "tmpfs")
            stack.callback(mounts.umount2, home)
        os.chmod(home, 0o755)
        if name in UNIONS:
            yield from serve_union(name, home)
        elif name == "overlayfs":
            yield from serve_overlayfs(name, home)
        else:
            build(home, {case.name: case.tree for case in CASES.values()})
            yield name, home


def serve_union(name: str, home: str) -> Iterator[tuple[str, str]]:
    setting, options = UNIONS[name]
    union = prepare_union(setting, home, options).mount()
    try:
        if setting == "over-whiteouts":
            for case in CASES.values():
                build(f"{union.path}/{case.name}", case.tree)
        yield name, union.path
    finally:
        union.close()


def serve_overlayfs(name: str, home: str) -> Iterator[tuple[str, str]]:
    build(f"{home}/lower", {case.name: case.tree for case in CASES.values()})
    build(home, {"upper": {}, "work": {}, "merged": {}})
    options = f"lowerdir={home}/lower,upperdir={home}/upper,workdir={home}/work,redirect_dir=on,index=on"
    mounts.mount("overlay", f"{home}/merged", "overlay", 0, options)
    try:
        yield name, f"{home}/merged"
    finally:
        mounts.umount2(f"{home}/merged")


@pytest.mark.parametrize("name", CASES)
def test_posix(subject: tuple[str, str], name: str) -> None:
    kind, directory = subject
    case = CASES[name]
    for capability in case.needs:
        if reason := missing(capability):
            pytest.skip(reason)
    differs = DIFFERS.get(kind, {}).get(name)
    if differs is None:
        case.run(os.path.join(directory, name))
        return
    with pytest.raises((AssertionError, OSError)) as failed:
        case.run(os.path.join(directory, name))
    assert how(failed.value) == differs.failure
    pytest.xfail(differs.why)


def how(error: BaseException) -> int | str | None:
    return error.errno if isinstance(error, OSError) else str(error).splitlines()[0]


def test_every_difference_is_of_a_case() -> None:
    for differences in DIFFERS.values():
        assert differences.keys() <= CASES.keys()


def test_splitting_loses_nothing() -> None:
    for case in CASES.values():
        upper, lower = split(case.tree)
        assert upper.keys() | lower.keys() == case.tree.keys() == decoys(case.tree).keys()
