"""The system calls of unionfs.linux.processes, each in a process of its own: they change the one that makes them."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.needs("root")

_HEAD = "import os, signal; from unionfs.linux import consts, processes as p\n"


def _python(script: str) -> str:
    run = subprocess.run([sys.executable, "-c", _HEAD + script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_clone3_is_a_fork_with_a_pidfd() -> None:
    assert _python(
        "pid, pidfd = p.clone3()\n"
        "if pid == 0: os._exit(7)\n"
        "import select; assert select.select([pidfd], [], [], 10)[0]\n"
        "assert not os.get_inheritable(pidfd)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    ) == "7\n"  # fmt: skip


def test_clone3_in_a_new_pid_namespace_is_process_1() -> None:
    assert _python(
        "pid, pidfd = p.clone3(consts.CLONE_NEWPID)\n"
        "if pid == 0: os._exit(os.getpid())\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    ) == "1\n"  # fmt: skip


def test_clone3_of_a_sibling_is_waited_for_by_the_parent() -> None:
    assert _python(
        "r, w = os.pipe()\n"
        "pid, _ = p.clone3()\n"
        "if pid == 0:\n"
        "    sibling, _ = p.clone3(consts.CLONE_PARENT)\n"
        "    if sibling: os.write(w, b'%d' % sibling); os._exit(0)\n"
        "    os._exit(9)\n"
        "os.waitpid(pid, 0); sibling = int(os.read(r, 16))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(sibling, 0)[1]))"
    ) == "9\n"  # fmt: skip


def test_clone3_raises_and_the_parent_goes_on() -> None:
    assert _python(
        "try: p.clone3(1 << 62)\nexcept OSError as error: print(error.errno)\nprint(p.single_threaded())"
    ) == "22\nTrue\n"  # fmt: skip


def test_threads_of_any_kind_are_counted() -> None:
    assert _python(
        "import threading; over = threading.Event(); t = threading.Thread(target=over.wait); t.start()\n"
        "print(p.single_threaded()); over.set(); t.join()"
    ) == "False\n"  # fmt: skip


def test_names_in_a_uts_namespace_of_its_own() -> None:
    assert _python(
        "p.unshare(consts.CLONE_NEWUTS); p.sethostname('ünder'); p.setdomainname('example.org')\n"
        "print(os.uname().nodename, open('/proc/sys/kernel/domainname').read().strip())"
    ) == "ünder example.org\n"  # fmt: skip


def test_setns_returns_to_a_namespace() -> None:
    assert _python(
        "fd = os.open('/proc/self/ns/uts', os.O_RDONLY); old = os.readlink('/proc/self/ns/uts')\n"
        "p.unshare(consts.CLONE_NEWUTS); new = os.readlink('/proc/self/ns/uts'); p.setns(fd, consts.CLONE_NEWUTS)\n"
        "print(old == os.readlink('/proc/self/ns/uts') != new)"
    ) == "True\n"  # fmt: skip


def test_capability_sets_of_more_than_32_bits() -> None:
    assert _python(
        "wish = 1 << 39 | 1 << 7; assert p.permitted_capabilities() >> 32\n"
        "p.capset(effective=1 << 39, permitted=wish, inheritable=1 << 7); assert p.permitted_capabilities() == wish\n"
        "print([l.split()[1].lstrip('0') for l in open('/proc/self/status') if l[:6] in 'CapInhCapPrmCapEff'])"
    ) == "['80', '8000000080', '8000000000']\n"  # fmt: skip


def test_close_range_closes_or_marks() -> None:
    assert _python(
        "fds = [os.dup2(0, n) for n in (50, 51, 52)]; p.close_range(51)\n"
        "print([n for n in fds if os.path.exists(f'/proc/self/fd/{n}')])\n"
        "p.close_range(50, flags=consts.CLOSE_RANGE_CLOEXEC); print(os.get_inheritable(50))"
    ) == "[50]\nFalse\n"  # fmt: skip
