"""What the filter of system calls says, by the numbers of each kind of program that the kernel runs, and what it means
for user namespaces; for keys, test_keyrings.py."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Callable

import pytest

from runtime.oci import defaults, seccomp
from tests.runtime.oci.conftest import Config
from tests.runtime.oci.keeper import Keeper

pytestmark = pytest.mark.needs("root")

Sh = Callable[..., str]

_NEWUSER, _NEWNS = 0x10000000, 0x00020000
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026


def _verdict(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """What the filter says, by the rules of bpf(4): enough of the machine to run any program of this kind."""
    data = struct.pack("<IIQQ", number, architecture, 0, argument)
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator = at = 0
    while True:
        operation, then, otherwise, k = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif operation == 0x06:
            return int(k)
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[operation]
            at += then if holds else otherwise


@pytest.mark.parametrize(
    ("machine", "architecture", "clone", "unshare", "add_key"),
    [
        ("x86_64", 0xC000003E, 56, 272, 248),
        ("x86_64", 0x40000003, 120, 310, 286),
        ("aarch64", 0xC00000B7, 220, 97, 217),
        ("aarch64", 0x40000028, 120, 337, 309),
        ("i686", 0xC000003E, 56, 272, 248),  # `setarch i686` on the first of these
        ("armv8l", 0xC00000B7, 220, 97, 217),
    ],
)
@pytest.mark.parametrize("administers", [False, True])
def test_what_it_says(
    machine: str, architecture: int, clone: int, unshare: int, add_key: int, administers: bool
) -> None:
    program = seccomp.program(machine, user_namespaces=administers)
    keys = range(add_key, add_key + 3)  # request_key and keyctl come next, wherever they are
    assert {_verdict(program, architecture, number) for number in keys} == {_EPERM}
    for number in (clone, unshare):
        assert _verdict(program, architecture, number, _NEWUSER | _NEWNS) == (_ALLOW if administers else _EPERM)
        assert _verdict(program, architecture, number, _NEWNS | 17) == _ALLOW
    assert _verdict(program, architecture, 435) == (_ALLOW if administers else _ENOSYS)
    others = set(range(600)) - {clone, unshare, 435, *keys}
    assert {_verdict(program, architecture, number, _NEWUSER) for number in others} == {_ALLOW}


def test_the_numbers_of_another_kind_of_program() -> None:
    program = seccomp.program("x86_64")
    assert _verdict(program, 0xC000003E, 0x40000000 | 272, _NEWUSER) == _ENOSYS  # x32
    assert _verdict(program, 0x80000016, 1) == _ENOSYS  # an architecture that this kernel has not
    assert seccomp.program("s390x") == b""


def test_a_container_has_none(sh: Sh) -> None:
    assert "Operation not permitted" in sh("unshare -U true 2>&1 || true")


def test_clone3_is_missing_and_clone_goes_on() -> None:
    """As a library sees it: ENOSYS, not EPERM, is what makes it try the older call."""
    libc = ctypes.CDLL(None, use_errno=True)
    child = os.fork()
    if child == 0:
        seccomp.install()
        arguments = ctypes.create_string_buffer(88)
        failed = libc.syscall(435, arguments, 88) == -1 and ctypes.get_errno() == 38
        ran = subprocess.call([sys.executable, "-I", "-S", "-c", ""]) == 0
        os._exit(0 if failed and ran else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_who_may_administer_the_system_may_have_them(keeper: Keeper, config: Callable[..., Config]) -> None:
    names = [*defaults.CAPABILITIES, "CAP_SYS_ADMIN"]
    wished = dict.fromkeys(("bounding", "permitted", "effective"), names)
    result = keeper.run(config("sh", "-c", "unshare -U true && echo made", process__capabilities=wished))
    assert result.out == "made\n"
