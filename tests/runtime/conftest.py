"""Real containers: a root file system of busybox, one installation for the session, the command line as users have it.

The whole test run has its own mount and network namespaces (tests/isolation.py), so bridges and mounts are its own.
"""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

WAITING = "runtime: waiting for "
PATIENCE = 30.0  # seconds until a test that waits for an event gives up
IMAGE = "box"


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll a condition for which the kernel has no event."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def links() -> list[str]:
    """The network links of this process's namespace; /sys shows those of the namespace it was mounted in."""
    return sorted(name for _, name in socket.if_nameindex())


class Runtime:
    """`runtime` with one root, state and driver."""

    def __init__(self, root: Path, state: Path, driver: str = "fuse-aufs") -> None:
        self.root, self.state, self.driver = root, state, driver

    def on(self, driver: str) -> Runtime:
        return Runtime(self.root, self.state, driver)

    def command(self, *words: object) -> list[str]:
        return [
            sys.executable, "-m", "runtime", "--root", str(self.root), "--state", str(self.state),
            "--storage-driver", self.driver, *map(str, words),
        ]  # fmt: skip

    def call(
        self, *words: object, stdin: str | bytes | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, whatever the exit code. Output that is not UTF-8 comes as surrogates."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            self.command(*words), input=data, stdin=subprocess.DEVNULL if data is None else None, capture_output=True,
            env={**os.environ, **(env or {})}, timeout=4 * PATIENCE,
        )  # fmt: skip
        out, err = (stream.decode("utf-8", "surrogateescape") for stream in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def __call__(self, *words: object, stdin: str | bytes | None = None, env: dict[str, str] | None = None) -> str:
        """Run to a good end; its standard output."""
        done = self.call(*words, stdin=stdin, env=env)
        assert done.returncode == 0, f"{words}: exit {done.returncode}: {done.stderr}"
        return done.stdout

    def refused(self, *words: object, code: int | None = None) -> str:
        """Run to a bad end; the one line that it wrote on standard error, with nothing on standard output. What it has
        waited for is told before that."""
        done = self.call(*words)
        assert done.returncode != 0, done.stdout
        assert code is None or done.returncode == code, f"exit {done.returncode}: {done.stderr}"
        assert done.stdout == ""
        said = "".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith(WAITING))
        assert said.startswith("runtime: "), done.stderr
        assert said.count("\n") == 1, done.stderr
        return said

    def popen(self, *words: object, **kwargs: object) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.command(*words), **{**pipes, **kwargs})  # type: ignore[call-overload, no-any-return]

    def run(self, *words: object, **kwargs: object) -> str:
        """The standard output of a container that is gone afterwards."""
        return self("run", "--rm", "--network", "none", *words, **kwargs)  # type: ignore[arg-type]

    def ids(self) -> list[str]:
        return self("ps", "-aq", "--no-trunc").split()

    def status(self, name: str) -> str:
        """The STATUS column of one container."""
        titles, *rows = self("ps", "-a").splitlines()
        at, end = titles.index("STATUS"), titles.index("NAMES")
        (found,) = [row[at:end].strip() for row in rows if row[end:].strip() == name]
        return found

    def pid(self, name: str) -> int:
        """The host's pid of a running container's init."""
        from runtime.engine.containers.store import ContainerStore
        from runtime.engine.paths import Paths

        return ContainerStore(Paths.of(str(self.root), str(self.state))).get(name).state().pid


# Dies by SIGKILL at a call of the engine, in the command's own process.
_DIE_AT = """
import os, signal, sys
from importlib import import_module
place, _, name = sys.argv[1].rpartition(".")
module, _, inside = place.partition(":")
owner = import_module(module)
owner = getattr(owner, inside) if inside else owner
setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
from runtime.cli import command
command(sys.argv[2:])
"""


def die_at(runtime: Runtime, where: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DIE_AT, where, *runtime.command(*words)[3:]], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


class Terminal:
    """A program on a pty of its own, as its controlling terminal."""

    def __init__(self, command: Sequence[str], rows: int = 24, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        self.slave_name = os.ttyname(slave)
        self.resize(rows, columns, tell=False)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: _take_terminal(),
        )  # fmt: skip
        self._slave = slave
        self.output = b""

    def resize(self, rows: int, columns: int, *, tell: bool = True) -> None:
        termios.tcsetwinsize(self.master, (rows, columns))

    def mode(self) -> list[object]:
        return termios.tcgetattr(self._slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> str:
        """Everything up to and including `text`."""
        deadline = time.monotonic() + PATIENCE
        wanted = text.encode()
        while wanted not in self.output:
            ready, _, _ = select.select([self.master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"waited in vain for {text!r}; there is {self.output!r}"
            self.output += os.read(self.master, 65536)
        end = self.output.index(wanted) + len(wanted)
        found, self.output = self.output[:end], self.output[end:]
        return found.decode()

    def wait(self) -> int:
        """The exit code; what the program still writes is read, so that it never waits for us."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while True:
                ready, _, _ = select.select([self.master, pidfd], [], [], PATIENCE)
                assert ready, "it does not end"
                if self.master in ready:
                    self.output += os.read(self.master, 65536)
                elif pidfd in ready:
                    return self.process.wait()
        finally:
            os.close(pidfd)

    def hang_up(self) -> None:
        os.close(self._slave)
        os.close(self.master)
        self.master = -1

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.master >= 0:
            self.hang_up()


def _take_terminal() -> None:
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def run(command: Sequence[str], rows: int = 24, columns: int = 80) -> Terminal:
        opened.append(Terminal(command, rows, columns))
        return opened[-1]

    yield run
    for each in opened:
        each.close()


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with busybox and what a system has at least."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    root = tmp_path_factory.mktemp("rootfs")
    for name in ("bin", "dev", "etc", "home/app", "proc", "root", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    root.chmod(0o755)
    (root / "tmp").chmod(0o1777)
    shutil.copy(busybox, root / "bin/busybox")
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nstaff:x:50:app\napp:x:1000:\n")
    (root / "etc/motd").write_text("hello from the image\n")
    os.chown(root / "home/app", 1000, 1000)
    return root


@pytest.fixture(scope="session")
def rootfs_tar(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = tmp_path_factory.mktemp("tar") / "rootfs.tar"
    subprocess.run(["tar", "-C", str(rootfs), "-cf", str(archive), "."], check=True)
    return archive


@pytest.fixture(scope="session")
def installation(rootfs_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """One root and state with the image imported; containers in it are each test's own business."""
    if os.geteuid() != 0:
        pytest.skip("it needs root")
    place = tmp_path_factory.mktemp("runtime")
    runtime = Runtime(place / "root", place / "state")
    runtime("import", "-c", 'CMD ["sh"]', rootfs_tar, IMAGE)
    return runtime


@pytest.fixture
def deadline() -> Iterator[None]:
    """A test that hangs fails, whatever it waits in; again and again, as what it leaves by may wait as well."""

    def give_up(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 5 * PATIENCE, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def runtime(installation: Runtime, deadline: None) -> Iterator[Runtime]:
    """The shared installation on fuse-aufs; a test that leaves a container fails, and the container is removed."""
    from tests.capabilities import missing

    if reason := missing("fuse"):
        pytest.skip(reason)
    yield installation
    _no_containers(installation)


@pytest.fixture(params=["fuse-aufs", "overlay2", "vfs"])
def each_driver(request: pytest.FixtureRequest, installation: Runtime, deadline: None) -> Iterator[Runtime]:
    from tests.capabilities import missing

    needs = {"fuse-aufs": "fuse", "overlay2": "overlay"}.get(request.param)
    if needs and (reason := missing(needs)):
        pytest.skip(reason)
    runtime = installation.on(request.param)
    yield runtime
    _no_containers(runtime)


def _no_containers(runtime: Runtime) -> None:
    left = runtime.ids()
    if left:
        runtime("rm", "-f", *left)
    assert not left, f"containers left behind: {left}"
    assert os.listdir(runtime.state / "containers") == []


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`compiled(text)` is the path of a program of that C text, linked statically: the image has no libraries."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")

    def compile_it(text: str) -> str:
        program = tmp_path_factory.mktemp("compiled") / "program"
        subprocess.run([compiler, "-static", "-O2", "-xc", "-o", program, "-"], input=text.encode(), check=True)
        return str(program)

    return compile_it


def kill(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.communicate()
