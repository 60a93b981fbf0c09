"""The host's keys: keyrings belong to a user id and to no namespace (keyrings(7)), and uid 0 in a container is the
host's."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.oci import defaults
from tests.runtime.oci.conftest import Config, process
from tests.runtime.oci.keeper import Keeper

pytestmark = pytest.mark.needs("root")

Make = Callable[..., Config]

_ADD_KEY, _KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}.get(os.uname().machine, (0, 0))
_USER_KEYRING, _REVOKE, _SETPERM = -4, 3, 5  # linux/keyctl.h

# What each call gives: a key's number, or minus an errno. `int 0x80` runs the 32-bit calls of x86 in a 64-bit process;
# what they point to has to be in the first 4 GiB.
_ASK = """
import ctypes, mmap, os, sys
calls, name, serial = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
MAP_32BIT = 0x40 if calls == "i386" else 0
memory = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT, 7)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
def put(at, text):
    memory[at:at + len(text) + 1] = text + b"\\0"
    return start + at
if calls == "i386":
    add_key, request_key, keyctl = 286, 287, 288
    # push rbx; mov eax, edi; mov ebx, esi; xchg ecx, edx; mov esi, r8d; mov edi, r9d; int 0x80; pop rbx; ret
    memory[:17] = bytes.fromhex("5389f889f387d14489c64489cfcd805bc3")
    run = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_long] * 6)(start)
    def call(*words):
        return run(*words, *[0] * (6 - len(words)))
else:
    add_key, request_key, keyctl = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[os.uname().machine]
    def call(*words):
        given = libc.syscall(*map(ctypes.c_long, words), *[ctypes.c_long(0)] * (6 - len(words)))
        return given if given >= 0 else -ctypes.get_errno()
kind, name, buffer = put(64, b"user"), put(128, name), start + 1024
for words in (
    (keyctl, 10, -4, kind, name),            # SEARCH of the user keyring
    (keyctl, 0, -4, 0),                      # its number
    (keyctl, 8, -4, -3),                     # LINK it into the session's
    (request_key, kind, name, 0, 0),
    (keyctl, 6, serial, buffer, 512),        # DESCRIBE
    (keyctl, 11, serial, buffer, 512),       # READ
    (keyctl, 1, 0),                          # JOIN_SESSION_KEYRING
    (add_key, kind, put(256, b"oci-test-mine"), buffer, 1, -3),
):
    print(call(*words))
"""


@pytest.fixture
def key() -> Iterator[tuple[str, int]]:
    """Name and number of a key of the host's root, which every process of uid 0 may look at."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not _KEYCTL:
        pytest.skip("this machine's numbers of the calls are not known here")
    name = f"oci-test-{uuid.uuid4().hex}"
    number = libc.syscall(_ADD_KEY, b"user", name.encode(), b"secret", 6, _USER_KEYRING)
    if number < 0:
        pytest.skip(f"no key can be made: {os.strerror(ctypes.get_errno())}")
    yield name, number
    libc.syscall(_KEYCTL, _REVOKE, number)


@pytest.fixture(params=["native", "i386"])
def calls(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if chosen == "i386" and os.uname().machine != "x86_64":
        pytest.skip("there are no such calls here")
    return chosen


@pytest.fixture
def with_python(rootfs: Path) -> dict[str, Any]:
    """A configuration whose container has the host's /usr, and with it this interpreter."""
    for name in ("bin", "lib", "lib64"):
        if os.path.islink(f"/{name}") and not (rootfs / name).exists():
            (rootfs / name).symlink_to(os.readlink(f"/{name}"))
    return {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]}


def _python() -> str:
    interpreter = os.path.realpath(sys.executable)
    if not interpreter.startswith("/usr/"):
        pytest.skip("the interpreter is not below /usr")
    return interpreter


def test_the_questions_are_good_ones(key: tuple[str, int], calls: str) -> None:
    """On the host they find the key; also by the other kind of calls."""
    command = [sys.executable, "-I", "-S", "-c", _ASK, calls, key[0], str(key[1])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode < 0:
        pytest.skip("this kernel runs no 32-bit programs")
    said = [int(line) for line in done.stdout.split()]
    assert said[0] == key[1] and said[5] == len("secret") and min(said) >= 0, done


@pytest.mark.parametrize("uid", [0, 65534])
@pytest.mark.parametrize("extra", [(), ("CAP_SYS_ADMIN",)], ids=["default", "CAP_SYS_ADMIN"])
def test_they_are_out_of_reach(
    keeper: Keeper, config: Make, with_python: dict[str, Any], key: tuple[str, int], calls: str, uid: int,
    extra: tuple[str, ...],
) -> None:  # fmt: skip
    """As docker has it also for who may administer the system: from the first process, and from one that is added."""
    command = (_python(), "-I", "-S", "-c", _ASK, calls, key[0], str(key[1]))
    asking = process(*command)
    asking["user"] = {"uid": uid, "gid": uid}
    asking["capabilities"] = {kind: [*defaults.CAPABILITIES, *extra] for kind in ("bounding", "permitted", "effective")}
    spec = config("sleep", "1000")
    spec["mounts"].append(with_python)
    first = {**spec, "process": asking, "linux": {**spec["linux"], "cgroupsPath": f"{spec['linux']['cgroupsPath']}-1"}}
    refused = [-errno.EPERM] * 8
    assert _numbers(keeper.run(first).out) == refused
    box = keeper.create(spec).start()
    try:
        assert _numbers(box.exec(asking).start().wait().out) == refused
    finally:
        box.delete()
        box.wait()


def _numbers(out: str) -> list[int]:
    return [int(word) for word in out.split()]


def test_no_process_possesses_the_users_keyring(keeper: Keeper, config: Make, key: tuple[str, int]) -> None:
    """A process without a session keyring has the user's default one, which links to the user keyring; a key that only
    possessors may look at is in the list of keys then."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(_KEYCTL, _SETPERM, key[1], 0x3F000000) == 0
    own = subprocess.run(["cat", "/proc/keys"], capture_output=True, text=True, check=True)
    assert key[0] in own.stdout
    box = keeper.create(config("sh", "-c", "cat /proc/keys; sleep 1000", linux__maskedPaths=[])).start()
    added = box.exec(process("cat", "/proc/keys")).start().wait()
    box.until("keyring")
    box.delete()
    assert key[0] not in added.out + box.wait().out and "keyring" in added.out


@pytest.mark.parametrize("name", ["keys", "key-users"])
def test_what_keys_there_are_is_masked(sh: Callable[..., str], name: str) -> None:
    assert sh(f"cat /proc/{name}") == ""
