"""Processes: clone3, namespaces, credentials beyond os, prctl, descriptors of a process that is about to execve.

The calls act on the calling thread only (namespaces, capabilities and prctl flags are per thread in Linux), so a
process that means to change itself as a whole must be single-threaded.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

from unionfs.linux import consts, libc

_int, _uint, _ulong, _char_p = ctypes.c_int, ctypes.c_uint, ctypes.c_ulong, ctypes.c_char_p

_unshare = libc.bind("unshare", _int)
_setns = libc.bind("setns", _int, _int)
_prctl = libc.bind("prctl", _int, _ulong, _ulong, _ulong, _ulong)
_sethostname = libc.bind("sethostname", _char_p, ctypes.c_size_t)
_setdomainname = libc.bind("setdomainname", _char_p, ctypes.c_size_t)
_capset = libc.bind("capset", ctypes.c_void_p, ctypes.c_void_p)
_capget = libc.bind("capget", ctypes.c_void_p, ctypes.c_void_p)
_close_range = libc.syscall(consts.NR_close_range, _uint, _uint, _uint)
_NR_keyctl = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine, 250)
_keyctl = libc.syscall(_NR_keyctl, _int, _char_p)

# clone3 goes through PyDLL, which keeps the interpreter lock across the call: the child must not find it released
# by a thread that does not exist in the child.
_clone3 = ctypes.PyDLL(None, use_errno=True).syscall


class clone_args(ctypes.Structure):
    """linux/sched.h"""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid",
            "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


class cap_user_header(ctypes.Structure):
    """linux/capability.h"""

    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class cap_user_data(ctypes.Structure):
    """linux/capability.h; version 3 uses an array of two, low word first."""

    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def clone3(flags: int = 0, *, cgroup: int | None = None) -> tuple[int, int]:
    """Fork with clone3(2): (pid, pidfd) in the parent, (0, -1) in the child, which should end in execve or os._exit.

    `cgroup` is a descriptor of a cgroup v2 directory that the child is born in. With CLONE_PARENT the child is a
    sibling, waited for by the caller's parent. The caller must be single-threaded (see `single_threaded`): locks held
    by other threads would stay locked in the child for ever.
    """
    pidfd = ctypes.c_int(-1)
    arguments = clone_args(flags=flags | consts.CLONE_PIDFD, pidfd=ctypes.addressof(pidfd))
    if not flags & consts.CLONE_PARENT:
        arguments.exit_signal = signal.SIGCHLD
    if cgroup is not None:
        arguments.flags |= consts.CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    # What os.fork does around fork(2): see "PyOS_BeforeFork" in the C API's utilities.
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _clone3(consts.NR_clone3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        libc.oserror()
    return pid, pidfd.value


def single_threaded() -> bool:
    """Whether this process has one thread, as the kernel counts them: threads that no Python code started too."""
    return len(os.listdir("/proc/self/task")) == 1


def unshare(flags: int) -> None:
    _unshare(flags)


def setns(fd: int, flags: int = 0) -> None:
    """Join the namespace that `fd` is open on or, with a pidfd, its process's that `flags` name. See setns(2)."""
    _setns(fd, flags)


def in_user_namespace() -> bool:
    """Whether user ids are mapped; the first namespace maps all of them to themselves (user_namespaces(7))."""
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        return lines.read().split() != ["0", "0", "4294967295"]


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    return _prctl(option, arg2, arg3, arg4, arg5)


def sethostname(name: str) -> None:
    raw = os.fsencode(name)
    _sethostname(raw, len(raw))


def setdomainname(name: str) -> None:
    raw = os.fsencode(name)
    _setdomainname(raw, len(raw))


def capset(*, effective: int, permitted: int, inheritable: int) -> None:
    """Set the thread's capability sets; each is a bit mask, bit n being capability n. See capset(2)."""
    header = cap_user_header(consts.LINUX_CAPABILITY_VERSION_3, 0)
    sets = (effective, permitted, inheritable)
    words = (cap_user_data * 2)(*(cap_user_data(*(bits >> shift & 0xFFFFFFFF for bits in sets)) for shift in (0, 32)))
    _capset(ctypes.byref(header), words)


def permitted_capabilities() -> int:
    """The thread's permitted set as a bit mask."""
    header = cap_user_header(consts.LINUX_CAPABILITY_VERSION_3, 0)
    words = (cap_user_data * 2)()
    _capget(ctypes.byref(header), words)
    return int(words[0].permitted) | int(words[1].permitted) << 32


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """Close the descriptors first..last, or with CLOSE_RANGE_CLOEXEC mark them close-on-exec. See close_range(2)."""
    _close_range(first, last, flags)


def join_new_session_keyring() -> None:
    """Leave the inherited session keyring for a new anonymous one: keyrings belong to no namespace. See keyctl(2)."""
    _keyctl(consts.KEYCTL_JOIN_SESSION_KEYRING, None)


def invocation() -> tuple[memoryview, memoryview]:
    """The memory in which this process was given its arguments and its environment, each ended by a zero byte, to be
    written to. Others read it as /proc/PID/cmdline, which is open to everybody, and environ (proc(5)), and a fork has
    it too; Python has made its own copies of both when it started."""
    with open("/proc/self/stat", "rb") as fields:
        numbers = fields.read().rpartition(b")")[2].split()
    arg_start, arg_end, env_start, env_end = map(int, numbers[45:49])  # the 48th to the 51st, proc(5)
    return _memory(arg_start, arg_end), _memory(env_start, env_end)


def _memory(start: int, end: int) -> memoryview:
    return memoryview((ctypes.c_char * (end - start)).from_address(start)).cast("B")


def is_dying(tid: int) -> bool:
    """Whether a thread has a SIGKILL pending, as all of a process that a signal ends have, or is gone (proc(5))."""
    try:
        with open(f"/proc/{tid}/status", "rb") as fields:
            pending = [int(line.split()[1], 16) for line in fields if line.startswith((b"SigPnd:", b"ShdPnd:"))]
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False  # we may not see it
    return any(signals >> signal.SIGKILL - 1 & 1 for signals in pending)


def is_stopped(pid: int) -> bool:
    """Whether a process waits to be continued, by a signal or by a debugger (proc(5), /proc/PID/status).

    strace(1) stops one at each system call and lets it go on: then this looks for up to a tenth of a second.
    """
    first = _state(pid)
    if first[0] != b"t":
        return first[0] == b"T"
    for _ in range(10):
        time.sleep(0.01)
        if _state(pid) != first:
            return False
    return True


def _state(pid: int) -> tuple[bytes, int]:
    """The state of a process's first thread, a letter, and how often it gave up the processor; b"" if it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file if b":" in line)
    except OSError:
        return b"", 0
    return fields[b"State"].split()[0], int(fields[b"voluntary_ctxt_switches"])


def groups(tid: int) -> set[int]:
    """The supplementary groups of a thread (proc(5), /proc/PID/status); none for one that is gone."""
    try:
        with open(f"/proc/{tid}/status", "rb") as fields:
            return next({int(gid) for gid in line.split()[1:]} for line in fields if line.startswith(b"Groups:"))
    except OSError:
        return set()


def is_capable(tid: int, capability: int, uid: int) -> bool:
    """Whether a thread that acts as the user `uid` has a capability effectively, in the user namespace of this process:
    a thread of an inner namespace has all capabilities there, and none here. False if it is gone, or we may not see it,
    or it acts as somebody other than /proc says, as an NFS server's does (nfsd_setuser(), fs/nfsd/auth.c)."""
    try:
        return _has_effective(tid, capability, uid) and _is_of_our_namespace(tid)
    except (OSError, LookupError, ValueError):
        return False


def is_capable_over(tid: int, capability: int, uid: int, file: tuple[int, int]) -> bool:
    """The same over a file with this owner and group, as this process sees them: for that, a thread of any user
    namespace that maps both is capable (capable_wrt_inode_uidgid(), kernel/capability.c)."""
    owner, group = file
    try:
        return _has_effective(tid, capability, uid) and (
            _is_of_our_namespace(tid) or (_maps(f"/proc/{tid}/uid_map", owner) and _maps(f"/proc/{tid}/gid_map", group))
        )
    except (OSError, LookupError, ValueError):
        return False


def _has_effective(tid: int, capability: int, uid: int) -> bool:
    with open(f"/proc/{tid}/status", "rb") as fields:
        said = {key: value.split() for key, _, value in (line.partition(b":") for line in fields)}
    *_, fsuid = map(int, said[b"Uid"])  # real, effective, saved, and for files (proc(5))
    return fsuid == uid and bool(int(said[b"CapEff"][0], 16) >> capability & 1)


def _is_of_our_namespace(tid: int) -> bool:
    return os.path.samefile(f"/proc/{tid}/ns/user", "/proc/self/ns/user")


def _maps(path: str, number: int) -> bool:
    """Whether a user namespace maps our `number`; the map of another namespace is shown in the numbers of the reader's
    own (user_namespaces(7))."""
    with open(path, "rb") as lines:
        return any(
            first <= number < first + count for _, first, count in (map(int, line.split()) for line in lines)
        )


class WithoutCapability:
    """`with` this, the calling thread does not have `capability` effectively. All threads that use one object must have
    the same sets as the thread that made it: they are prepared once, because this is on the path of every open."""

    def __init__(self, capability: int) -> None:
        self._header = ctypes.byref(cap_user_header(consts.LINUX_CAPABILITY_VERSION_3, 0))
        self._with, self._without = (cap_user_data * 2)(), (cap_user_data * 2)()
        for words in (self._with, self._without):
            _capget(self._header, words)
        self._without[capability // 32].effective &= ~(1 << capability % 32)

    def __enter__(self) -> None:
        _capset(self._header, self._without)

    def __exit__(self, *error: object) -> None:
        _capset(self._header, self._with)


def lose(capability: int) -> None:
    """From now on the calling thread, and those that it starts, do not have `capability` effectively."""
    WithoutCapability(capability).__enter__()
