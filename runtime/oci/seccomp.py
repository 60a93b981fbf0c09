"""What a container may not ask of the kernel: a filter of system calls, assembled here (seccomp(2), linux/filter.h).

The rest of docker's profile is not here yet. Its words for what is:

- *Keys.* A keyring belongs to a user id and to no namespace, so uid 0 in a container is the host's (keyrings(7)).
  add_key(2), request_key(2) and keyctl(2) give EPERM, whatever capabilities there are.
- *User namespaces*, unless the container may administer the system (CAP_SYS_ADMIN). In one of its own a process has
  every capability over namespaces it makes, mounts cgroup v1 hierarchies writable and lifts the container's limits;
  much of the kernel is reachable only that way. unshare(2) and clone(2) with CLONE_NEWUSER give EPERM, and clone3(2),
  whose flags a filter cannot see, ENOSYS, upon which libraries fall back on clone(2).
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
_X32_BIT = 0x40000000


class _Abi(NamedTuple):
    """AUDIT_ARCH_… (linux/audit.h) and its numbers of the calls (asm/unistd.h); clone3 is 435 everywhere."""

    architecture: int
    clone: int
    unshare: int
    keys: tuple[int, int, int]  # add_key, request_key, keyctl


_X86 = (_Abi(0xC000003E, 56, 272, (248, 249, 250)), _Abi(0x40000003, 120, 310, (286, 287, 288)))
_ARM = (_Abi(0xC00000B7, 220, 97, (217, 218, 219)), _Abi(0x40000028, 120, 337, (309, 310, 311)))
# A 64-bit kernel serves 32-bit programs too, with other numbers; and to a process that asked it to (personality(2),
# setarch(8)) it says that it is the 32-bit machine.
_ABIS = {"x86_64": _X86, "i686": _X86, "aarch64": _ARM, "armv8l": _ARM}


def program(machine: str, *, user_namespaces: bool = False) -> bytes:
    """The filter as an array of struct sock_filter; empty where this machine's system calls are not known."""
    abis = _ABIS.get(machine, ())
    if not abis:
        return b""
    out = [_instruction(_LOAD, _ARCHITECTURE)]
    for abi in abis:
        block = _block(abi, user_namespaces)
        out += [_instruction(_EQUAL, abi.architecture, otherwise=len(block)), *block]
    return b"".join([*out, _MISSING])


def _block(abi: _Abi, user_namespaces: bool) -> list[bytes]:
    """One kind of program's calls: those that a rule is about have its answer, the others are allowed."""
    rules = {key: [_REFUSED] for key in abi.keys}
    if not user_namespaces:
        flags = [
            _instruction(_LOAD, _FIRST_ARGUMENT),
            _instruction(_ANY_BIT, consts.CLONE_NEWUSER, otherwise=1),
            _REFUSED,
            _ALLOWED,
        ]
        rules |= {consts.NR_clone3: [_MISSING], abi.clone: flags, abi.unshare: flags}
    block = [_instruction(_LOAD, _NUMBER), _instruction(_AT_LEAST, _X32_BIT, otherwise=1), _MISSING]
    for number, answer in rules.items():
        block += [_instruction(_EQUAL, number, otherwise=len(answer)), *answer]
    return [*block, _ALLOWED]


def _instruction(code: int, k: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """struct sock_filter; `then` and `otherwise` are how many instructions a test skips."""
    return struct.pack("<HBBI", code, then, otherwise, k)


# linux/seccomp.h, SECCOMP_RET_ALLOW and SECCOMP_RET_ERRNO
_ALLOWED = _instruction(_RETURN, 0x7FFF0000)
_REFUSED, _MISSING = (_instruction(_RETURN, 0x00050000 | number) for number in (errno.EPERM, errno.ENOSYS))


def install(*, user_namespaces: bool = False) -> None:
    """Filter this process's calls, and those of all that come of it. Needs CAP_SYS_ADMIN or no_new_privs.

    `user_namespaces`: they may be made.
    """
    filters = program(os.uname().machine, user_namespaces=user_namespaces)
    if not filters:
        return
    instructions = ctypes.create_string_buffer(filters, len(filters))
    # struct sock_fprog: how many instructions, and where they are.
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(filters) // 8, ctypes.addressof(instructions)))
    processes.prctl(consts.PR_SET_SECCOMP, consts.SECCOMP_MODE_FILTER, ctypes.addressof(fprog))
