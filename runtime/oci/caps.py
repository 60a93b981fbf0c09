"""Capabilities: names to bits, and giving up what a container's process is not to have (capabilities(7))."""

from __future__ import annotations

from collections.abc import Iterable

from unionfs.linux import consts, processes

# linux/capability.h, in bit order
_NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
BITS = {f"CAP_{name}": bit for bit, name in enumerate(_NAMES)}


def mask(names: Iterable[str]) -> int:
    """The bit mask of these CAP_… names; KeyError(name) for an unknown one."""
    bits = 0
    for name in names:
        bits |= 1 << BITS[name]
    return bits


def drop_bounding(keep: int) -> None:
    """Leave only `keep` in the bounding set. Needs CAP_SETPCAP, so it comes before the other sets shrink."""
    for bit in range(64):
        try:
            held = processes.prctl(consts.PR_CAPBSET_READ, bit)
        except OSError:  # EINVAL: past the kernel's last capability
            return
        if held and not keep >> bit & 1:
            processes.prctl(consts.PR_CAPBSET_DROP, bit)


def become(*, permitted: int, effective: int, inheritable: int, ambient: int) -> None:
    """Set the thread's sets to these, as far as the thread holds them: nobody can give what they do not have.

    Ambient and inheritable are emptied unless asked for: with an inheritable capability, a file in the image that
    has the same one as file-inheritable would raise it for any user (CVE-2022-24769, CVE-2022-27650).
    """
    held = processes.permitted_capabilities()
    permitted &= held
    processes.prctl(consts.PR_CAP_AMBIENT, consts.PR_CAP_AMBIENT_CLEAR_ALL)
    processes.capset(effective=effective & permitted, permitted=permitted, inheritable=inheritable & held)
    ambient &= permitted & inheritable
    for bit in range(ambient.bit_length()):
        if ambient >> bit & 1:
            processes.prctl(consts.PR_CAP_AMBIENT, consts.PR_CAP_AMBIENT_RAISE, bit)
