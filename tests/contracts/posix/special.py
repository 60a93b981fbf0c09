"""Fifos, sockets, devices, programs, locks."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import stat
import subprocess

from tests.contracts.posix.case import case, content, fails, in_child, opened
from tests.trees import File, Special


@case({"fifo": Special(mode=0o622)})
def fifos(root: str) -> None:
    os.mkfifo(f"{root}/new", 0o600)
    for name in ("fifo", "new"):
        path = f"{root}/{name}"
        assert stat.S_ISFIFO(os.stat(path).st_mode)
        pid = os.fork()
        if pid == 0:
            with opened(path, os.O_WRONLY) as fd:
                os.write(fd, b"through")
            os._exit(0)
        with opened(path, os.O_RDONLY) as fd:
            assert os.read(fd, 100) == b"through"
        os.waitpid(pid, 0)
    assert os.stat(f"{root}/fifo").st_mode & 0o777 == 0o622


@case({"old": Special(type=stat.S_IFSOCK, mode=0o755)})
def sockets(root: str) -> None:
    """Bound and connected below the directory's descriptor: sun_path is short."""
    assert stat.S_ISSOCK(os.stat(f"{root}/old").st_mode)
    with opened(root, os.O_PATH) as here, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/new")
        server.listen()
        assert stat.S_ISSOCK(os.stat(f"{root}/new").st_mode)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/self/fd/{here}/new")
            peer, _ = server.accept()
            with peer:
                client.sendall(b"hello")
                assert peer.recv(10) == b"hello"
        with socket.socket(socket.AF_UNIX) as again, fails(errno.EADDRINUSE):
            again.bind(f"/proc/self/fd/{here}/new")
        with socket.socket(socket.AF_UNIX) as client, fails(errno.ECONNREFUSED):
            client.connect(f"/proc/self/fd/{here}/old")
        os.chmod(f"{root}/new", 0o600)
        os.rename(f"{root}/new", f"{root}/new2")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/self/fd/{here}/new2")


@case({"null": Special(type=stat.S_IFCHR, rdev=os.makedev(1, 3), mode=0o666)})
def devices(root: str) -> None:
    os.mknod(f"{root}/new", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    os.mknod(f"{root}/new2", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    assert os.stat(f"{root}/null").st_rdev == os.makedev(1, 3)
    assert os.stat(f"{root}/new").st_rdev == os.makedev(1, 5)
    assert stat.S_ISBLK(os.stat(f"{root}/new2").st_mode)
    os.chmod(f"{root}/null", 0o600)
    assert os.stat(f"{root}/null").st_rdev == os.makedev(1, 3)
    if not os.statvfs(root).f_flag & 0x4:  # ST_NODEV
        with opened(f"{root}/new", os.O_RDONLY) as zero, opened(f"{root}/null", os.O_WRONLY) as null:
            assert os.read(zero, 4) == bytes(4)
            assert os.write(null, b"gone") == 4


@case()
def plain_files_by_mknod(root: str) -> None:
    os.mknod(f"{root}/new", stat.S_IFREG | 0o604)
    info = os.stat(f"{root}/new")
    assert (stat.S_ISREG(info.st_mode), info.st_mode & 0o777, info.st_size) == (True, 0o604, 0)
    with fails(errno.EEXIST):
        os.mknod(f"{root}/new", stat.S_IFREG | 0o600)


@case({"script": File("#!/bin/sh\necho ran $1\n", mode=0o755), "data": File("#!/bin/sh\n", mode=0o644)})
def run_a_script(root: str) -> None:
    run = subprocess.run([f"{root}/script", "well"], capture_output=True, text=True, check=True)
    assert run.stdout == "ran well\n"
    with fails(errno.EACCES):
        subprocess.run([f"{root}/data"], check=False)


@case()
def run_a_program_and_replace_it(root: str) -> None:
    """A running program's file cannot be written (ETXTBSY) but can be replaced."""
    program = f"{root}/new"
    shutil.copy("/bin/cat", program)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        cat.stdin.write(b"started\n")
        cat.stdin.flush()
        assert cat.stdout.readline() == b"started\n"
        with fails(errno.ETXTBSY):
            os.open(program, os.O_WRONLY)
        shutil.copy("/bin/cat", f"{root}/new2")
        os.rename(f"{root}/new2", program)
        assert cat.communicate(b"still there")[0] == b"still there"
    assert subprocess.run([program], input=b"x", capture_output=True, check=True).stdout == b"x"


@case({"file": "x"})
def whole_file_locks(root: str) -> None:
    path = f"{root}/file"

    def attempt(kind: int) -> bool:
        with opened(path, os.O_RDONLY) as fd:
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    with opened(path, os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_SH)
        assert in_child(lambda: attempt(fcntl.LOCK_SH)) is True
        assert in_child(lambda: attempt(fcntl.LOCK_EX)) is False
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert in_child(lambda: attempt(fcntl.LOCK_SH)) is False
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert in_child(lambda: attempt(fcntl.LOCK_EX)) is True


@case({"file": "0123456789"})
def record_locks(root: str) -> None:
    path = f"{root}/file"

    def attempt(start: int, length: int) -> bool:
        with opened(path, os.O_RDWR) as fd:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            except OSError as error:
                assert error.errno in (errno.EAGAIN, errno.EACCES)
                return False
            return True

    with opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 2)
        assert in_child(lambda: attempt(0, 2)) is True
        assert in_child(lambda: attempt(5, 1)) is False
        assert in_child(lambda: attempt(6, 0)) is True
        fcntl.lockf(fd, fcntl.LOCK_UN, 4, 2)
        assert in_child(lambda: attempt(0, 0)) is True
        fcntl.lockf(fd, fcntl.LOCK_EX, 0, 0)
    assert in_child(lambda: attempt(0, 0)) is True, "closing the file does not release its locks"


@case({"file": "locked by its descriptor"})
def a_lock_outlives_a_write(root: str) -> None:
    """A file locked through a read-only descriptor stays locked when it is written (and copied up)."""
    path = f"{root}/file"

    def locked() -> bool:
        with opened(path, os.O_RDWR) as fd:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    with opened(path, os.O_RDONLY) as fd:
        fcntl.flock(fd, fcntl.LOCK_SH)
        with opened(path, os.O_WRONLY | os.O_APPEND) as writer:
            os.write(writer, b"!")
        assert in_child(locked) is True
    assert content(path) == b"locked by its descriptor!"
