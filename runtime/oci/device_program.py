"""cgroup v2's device control: the rules assembled into a BPF program that the kernel asks at every open and mknod.

The program gets struct bpf_cgroup_dev_ctx {u32 access_type, major, minor} (linux/bpf.h): access_type is the kind of
device in its low half and the accesses wanted in its high half. It returns 1 to allow.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

from runtime.oci.resources import DeviceRule
from unionfs.linux import consts, libc

_NR_bpf = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, 321)
_bpf = libc.syscall(_NR_bpf, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)

# struct bpf_insn: opcode, registers (source << 4 | destination), offset, immediate; opcodes of class ALU and JMP32
_insn = struct.Struct("=BBhi")
_LDX, _MOV_K, _MOV_X, _AND_K, _RSH_K, _EXIT = 0x61, 0xB4, 0xBC, 0x54, 0x74, 0x95
_JEQ_K, _JNE_K, _JNE_X = 0x16, 0x56, 0x5E
_JUMPS = (_JEQ_K, _JNE_K, _JNE_X)
_KINDS = {"c": consts.BPF_DEVCG_DEV_CHAR, "b": consts.BPF_DEVCG_DEV_BLOCK}
_ACCESS = {"r": consts.BPF_DEVCG_ACC_READ, "w": consts.BPF_DEVCG_ACC_WRITE, "m": consts.BPF_DEVCG_ACC_MKNOD}

# r1 is the context, then scratch. r2 becomes the kind, r3 the accesses wanted, r4 major, r5 minor.
_PROLOGUE = (
    _insn.pack(_LDX, 0x12, 0, 0), _insn.pack(_MOV_X, 0x23, 0, 0), _insn.pack(_AND_K, 0x02, 0, 0xFFFF),
    _insn.pack(_RSH_K, 0x03, 0, 16), _insn.pack(_LDX, 0x14, 4, 0), _insn.pack(_LDX, 0x15, 8, 0),
)  # fmt: skip


class bpf_prog_load(ctypes.Structure):
    """linux/bpf.h, union bpf_attr for BPF_PROG_LOAD, up to prog_flags"""

    _fields_ = [
        ("prog_type", ctypes.c_uint32), ("insn_cnt", ctypes.c_uint32), ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64), ("log_level", ctypes.c_uint32), ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64), ("kern_version", ctypes.c_uint32), ("prog_flags", ctypes.c_uint32),
    ]  # fmt: skip


class bpf_prog_attach(ctypes.Structure):
    """linux/bpf.h, union bpf_attr for BPF_PROG_ATTACH"""

    _fields_ = [
        ("target_fd", ctypes.c_uint32), ("attach_bpf_fd", ctypes.c_uint32), ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
    ]  # fmt: skip


def attach(cgroup_fd: int, rules: Sequence[DeviceRule]) -> None:
    """Hold the cgroup to `rules` until it is removed. A parent's program, if there is one, must agree too."""
    code = ctypes.create_string_buffer(assemble(rules))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    load = bpf_prog_load(
        consts.BPF_PROG_TYPE_CGROUP_DEVICE,
        (len(code) - 1) // _insn.size,
        ctypes.addressof(code),
        ctypes.addressof(licence),
    )
    program = _bpf(consts.BPF_PROG_LOAD, ctypes.byref(load), ctypes.sizeof(load))
    try:
        link = bpf_prog_attach(cgroup_fd, program, consts.BPF_CGROUP_DEVICE, 0)
        _bpf(consts.BPF_PROG_ATTACH, ctypes.byref(link), ctypes.sizeof(link))
    finally:
        os.close(program)


def assemble(rules: Sequence[DeviceRule]) -> bytes:
    """The program: the last rule that matches decides, so they are asked backwards; nothing matching is a no."""
    code = list(_PROLOGUE)
    for rule in reversed(rules):
        tests = _tests(rule)
        for n, (opcode, registers, immediate) in enumerate(tests):
            past_the_verdict = len(tests) - n - 1 + 2
            code.append(_insn.pack(opcode, registers, past_the_verdict if opcode in _JUMPS else 0, immediate))
        code += _verdict(rule.allow)
        if not tests:
            break  # it matches everything; the verifier refuses instructions that are never reached
    else:
        code += _verdict(False)
    return b"".join(code)


def _verdict(allow: bool) -> tuple[bytes, bytes]:
    return _insn.pack(_MOV_K, 0x00, 0, int(allow)), _insn.pack(_EXIT, 0, 0, 0)


def _tests(rule: DeviceRule) -> list[tuple[int, int, int]]:
    """(opcode, registers, immediate) each; every jump among them means: not this rule."""
    tests = []
    if rule.kind != "a":
        tests.append((_JNE_K, 0x02, _KINDS[rule.kind]))
    access = sum(_ACCESS[letter] for letter in set(rule.access))
    if access != 7:
        tests += [(_MOV_X, 0x31, 0), (_AND_K, 0x01, access)]
        # Allowing takes a rule that covers all that is wanted; for denying it is enough that it meets a part.
        tests.append((_JNE_X, 0x31, 0) if rule.allow else (_JEQ_K, 0x01, 0))
    for register, number in ((0x04, rule.major), (0x05, rule.minor)):
        if number is not None:
            tests.append((_JNE_K, register, number))
    return tests
