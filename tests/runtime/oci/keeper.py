"""A single-threaded process that creates containers for the tests, as a task does; driven by lines of JSON.

A request is {"op": name, …}; the answer {"result": …} or {"fault": [class name, message]}. The test process itself
must not fork containers: it has threads. `Keeper` is the test's side, `main` the process's.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from runtime import errors
from runtime.oci import cgroups, container
from runtime.oci.process import Init
from unionfs.linux import consts, mounts, processes

_DEADLINE = 20  # seconds for what an output or a console is to show


class Result(NamedTuple):
    code: int
    out: str


class Keeper:
    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._outputs = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.oci.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def call(self, op: str, **arguments: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], 3 * _DEADLINE)
        assert ready, f"{op} hangs"
        answer = json.loads(self._process.stdout.readline())
        if "fault" in answer:
            raise errors.by_name(*answer["fault"])
        return answer["result"]

    def directory(self) -> str:
        """A new one for a container's state."""
        return tempfile.mkdtemp(prefix="state", dir=self._directory)

    def output(self) -> str:
        """A new file for a container's standard output and error."""
        self._outputs += 1
        return os.path.join(self._directory, f"output{self._outputs}")

    def run(self, spec: dict[str, Any]) -> Result:
        """Create, start, wait, delete."""
        path = self.output()
        code = self.call("run", directory=self.directory(), spec=spec, output=path)
        return Result(code, _contents(path))

    def create(self, spec: dict[str, Any], root: str = "") -> Box:
        """With `root`, its root is a copy of the mount there, given as a descriptor."""
        path = self.output()
        directory = self.directory()
        pid = self.call("create", directory=directory, spec=spec, output=path, root=root)
        return Box(self, directory, spec, pid, path)

    def kill(self) -> None:
        self._process.kill()
        self.close()

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


class Box:
    """A created container, or an added process of one."""

    def __init__(self, keeper: Keeper, directory: str, spec: dict[str, Any], pid: int, path: str) -> None:
        self._keeper, self.directory, self.spec, self.pid, self._path = keeper, directory, spec, pid, path

    def start(self) -> Box:
        self._keeper.call("start", pid=self.pid)
        return self

    def wait(self) -> Result:
        return Result(self._keeper.call("wait", pid=self.pid), _contents(self._path))

    def until(self, text: str) -> Box:
        """Until the output has `text`: a file gives no event that could be waited for."""
        deadline = time.monotonic() + _DEADLINE
        while text not in _contents(self._path):
            assert time.monotonic() < deadline, f"no {text!r} in {_contents(self._path)!r}"
            time.sleep(0.002)
        return self

    def signal(self, number: int) -> None:
        self._keeper.call("signal", pid=self.pid, number=number)

    def exec(self, process: dict[str, Any]) -> Box:
        path = self._keeper.output()
        pid = self._keeper.call("exec", directory=self.directory, process=process, output=path)
        return Box(self._keeper, self.directory, self.spec, pid, path)

    def delete(self) -> None:
        self._keeper.call("delete", directory=self.directory)

    def end(self) -> Result:
        self.signal(signal.SIGKILL)
        result = self.wait()
        self.delete()
        return result

    def look(self) -> tuple[int, int]:
        """(pid, descriptor there) of a look at its root, which outlives the container."""
        return self._keeper.pid, self._keeper.call("look", pid=self.pid)

    def type(self, text: str) -> None:
        self._keeper.call("type", pid=self.pid, text=text)

    def read(self, until: str) -> str:
        """What the console shows, up to `until`, or to its end if that is empty."""
        text: str = self._keeper.call("read", pid=self.pid, until=until)
        return text

    def resize(self, rows: int, columns: int) -> None:
        self._keeper.call("resize", pid=self.pid, rows=rows, columns=columns)


def _contents(path: str) -> str:
    with open(path, errors="replace") as stream:
        return stream.read()


class _Side:
    """The keeper process's operations, by their names in the requests."""

    def __init__(self) -> None:
        self.inits: dict[int, Init] = {}
        self.directories: dict[int, str] = {}  # of those that are first processes

    def _stdio(self, output: str) -> container.Stdio:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        return container.Stdio(os.open("/dev/null", os.O_RDONLY), fd, fd)

    def _keep(self, init: Init, stdio: container.Stdio) -> int:
        for fd in {*stdio}:
            os.close(fd)
        self.inits[init.pid] = init
        return init.pid

    def create(self, directory: str, spec: dict[str, Any], output: str, root: str = "") -> int:
        pid = self._create(directory, spec, self._stdio(output), root)
        self.directories[pid] = directory
        return pid

    def _create(self, directory: str, spec: dict[str, Any], stdio: container.Stdio, root: str) -> int:
        if not root:
            return self._keep(container.create(directory, spec, stdio=stdio), stdio)
        fd = mounts.open_tree(consts.AT_FDCWD, root, consts.OPEN_TREE_CLONE)
        try:
            return self._keep(container.create(directory, spec, stdio=stdio, root=fd), stdio)
        finally:
            os.close(fd)

    def look(self, pid: int) -> int:
        root = self.inits[pid].root
        assert root is not None
        return os.dup(root)

    def close_fd(self, fd: int) -> None:
        os.close(fd)

    def run(self, directory: str, spec: dict[str, Any], output: str) -> int:
        pid = self.create(directory, spec, output)
        try:
            self.start(pid)
            return self.wait(pid)
        finally:
            self.delete(directory)

    def start(self, pid: int) -> None:
        if pid in self.directories:
            container.start(self.directories[pid])
        else:
            self.inits[pid].start()

    def leave(self, pid: int) -> None:
        self.inits[pid].leave()

    def wait(self, pid: int) -> int:
        init = self.inits.pop(pid)
        if init.console is not None:
            os.close(init.console)
        return init.wait()

    def signal(self, pid: int, number: int) -> None:
        self.inits[pid].kill(number)

    def exec(self, directory: str, process: dict[str, Any], output: str) -> int:
        stdio = self._stdio(output)
        return self._keep(container.exec_process(directory, process, stdio=stdio), stdio)

    def delete(self, directory: str) -> None:
        container.delete(directory)

    def type(self, pid: int, text: str) -> None:
        console = self.inits[pid].console
        assert console is not None
        os.write(console, text.encode())

    def read(self, pid: int, until: str) -> str:
        console = self.inits[pid].console
        assert console is not None
        text = b""
        while not until or until.encode() not in text:
            ready, _, _ = select.select([console], [], [], _DEADLINE)
            assert ready, f"no {until!r} in {text!r}"
            try:
                text += os.read(console, 4096)
            except OSError:  # EIO: nobody has the slave open any more
                break
        return text.decode(errors="replace")

    def resize(self, pid: int, rows: int, columns: int) -> None:
        console = self.inits[pid].console
        assert console is not None
        termios.tcsetwinsize(console, (rows, columns))

    def oom_kills(self, path: str) -> int:
        return cgroups.Cgroup(path).oom_kills()

    def enter_chroot(self, path: str, mounted: bool) -> None:
        """A chroot that looks like the host, in a mount namespace whose root is another; `mounted`: it is a mount, and
        not a directory with mounts in it."""
        processes.unshare(consts.CLONE_NEWNS)
        mounts.mount("none", "/", None, consts.MS_REC | consts.MS_PRIVATE)
        for name in [""] if mounted else [name for name in os.listdir("/") if os.path.isdir(f"/{name}")]:
            os.makedirs(f"{path}/{name}", exist_ok=True)
            mounts.mount(f"/{name}", f"{path}/{name}", None, consts.MS_BIND | consts.MS_REC)
        os.chroot(path)
        os.chdir("/")

    def leak(self, path: str) -> int:
        """Open a host directory inheritably and leave it open, as careless code around a runtime does."""
        fd = os.open(path, os.O_RDONLY)
        fcntl.fcntl(fd, fcntl.F_SETFD, 0)
        return fd

    def create_with_a_thread(self, directory: str, spec: dict[str, Any], output: str) -> int:
        over = threading.Event()
        thread = threading.Thread(target=over.wait)
        thread.start()
        try:
            return self.create(directory, spec, output)
        finally:
            over.set()
            thread.join()


def main() -> None:
    side = _Side()
    for line in sys.stdin:
        request = json.loads(line)
        operation: Callable[..., Any] = getattr(side, request.pop("op"))
        try:
            answer: dict[str, Any] = {"result": operation(**request)}
        except Exception as error:
            answer = {"fault": [type(error).__name__, str(error)]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
