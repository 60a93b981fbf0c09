"""No user namespaces in a container: a filter of system calls, assembled here (seccomp(2), linux/filter.h).

In a user namespace of its own a process has every capability over namespaces it makes, mounts cgroup v1 hierarchies
writable and lifts the container's limits; much of the kernel is reachable only that way. Docker's profile refuses
the same: unshare(2) and clone(2) with CLONE_NEWUSER give EPERM, and clone3(2), whose flags a filter cannot see, ENOSYS,
upon which libraries fall back on clone(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from unionfs.linux import consts, processes

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the low word comes first
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # linux/seccomp.h
_X32_BIT = 0x40000000


class _Abi(NamedTuple):
    """AUDIT_ARCH_… (linux/audit.h) and its numbers of the calls (asm/unistd.h); clone3 is 435 everywhere."""

    architecture: int
    clone: int
    unshare: int


# A 64-bit kernel serves 32-bit programs too, with other numbers.
_ABIS = {
    "x86_64": (_Abi(0xC000003E, 56, 272), _Abi(0x40000003, 120, 310)),
    "aarch64": (_Abi(0xC00000B7, 220, 97), _Abi(0x40000028, 120, 337)),
}


def program(machine: str) -> bytes:
    """The filter as an array of struct sock_filter; empty where this machine's system calls are not known."""
    abis = _ABIS.get(machine, ())
    if not abis:
        return b""
    out = [_instruction(_LOAD, _ARCHITECTURE)]
    for abi in abis:
        block = _block(abi)
        out += [_instruction(_EQUAL, abi.architecture, otherwise=len(block)), *block]
    out.append(_instruction(_RETURN, _ERRNO | errno.ENOSYS))
    return b"".join(out)


def _block(abi: _Abi) -> list[bytes]:
    allow, refuse, missing = (_ALLOW, _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS)
    return [
        _instruction(_LOAD, _NUMBER),
        _instruction(_AT_LEAST, _X32_BIT, then=6),
        _instruction(_EQUAL, consts.NR_clone3, then=5),
        _instruction(_EQUAL, abi.clone, then=1),
        _instruction(_EQUAL, abi.unshare, otherwise=4),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_ANY_BIT, consts.CLONE_NEWUSER, otherwise=2),
        _instruction(_RETURN, refuse),
        _instruction(_RETURN, missing),
        _instruction(_RETURN, allow),
    ]


def _instruction(code: int, k: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """struct sock_filter; `then` and `otherwise` are how many instructions a test skips."""
    return struct.pack("<HBBI", code, then, otherwise, k)


def refuse_user_namespaces() -> None:
    """For this process and all that come of it. Needs CAP_SYS_ADMIN or no_new_privs."""
    filters = program(os.uname().machine)
    if not filters:
        return
    instructions = ctypes.create_string_buffer(filters, len(filters))
    # struct sock_fprog: how many instructions, and where they are.
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(filters) // 8, ctypes.addressof(instructions)))
    processes.prctl(consts.PR_SET_SECCOMP, consts.SECCOMP_MODE_FILTER, ctypes.addressof(fprog))
