"""One container from its mounts to its last trace, in the order in which each needs the one before.

    begin   root file system, attached nowhere                      drivers.mounts.tree.open_tree
            /etc files, and the specification as it is run
            namespaces, cgroups, everything but execve              oci.create
            endpoint in the container's network namespace, and its address in /etc/hosts
            execve                                                  oci.start
            ... streams until the first process ends ...            task/loop.py
    end     processes, cgroups, endpoint, root file system          engine/containers/release.py
            the record of how it ended, or none of it any more
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from typing import Any

from drivers.api import Mount
from drivers.errors import InUse
from drivers.mounts.tree import Tree, open_tree
from runtime.engine.containers import accounts, release, trees
from runtime.engine.containers.container import Container
from runtime.engine.containers.etc import EtcFiles
from runtime.engine.installation import Installation
from runtime.engine.networks import files
from runtime.engine.networks.network import Endpoint
from runtime.engine.state import AT_REST, State, Status, keep, save
from runtime.engine.stdio import Ends, pipes
from runtime.errors import CommandNotExecutable, CommandNotFound, ConfigError, sentence, step
from runtime.oci import container as oci
from runtime.oci.process import Init

# How long a container's end waits for that of its root file system, seconds. Whoever still looks into it may have
# it for longer, which is not the container's fault.
_PATIENCE = 5.0
# The exit code of a container that could not be started, docker's.
_NOT_FOUND, _NOT_EXECUTABLE, _NOT_STARTED = 127, 126, 128


class Life:
    """The steps, and what they have made so far. `fail` may follow any of them, `end` what has begun."""

    def __init__(self, installation: Installation, container: Container) -> None:
        self._installation = installation
        self._container = container
        self._config = container.config
        self._network = installation.network(self._config.network)
        self._tree: Tree | None = None
        self._etc: EtcFiles | None = None
        self._init: Init | None = None
        found = container.state()
        self.state = found if found.status in AT_REST else found.to(Status.CREATED)

    def record(self) -> None:
        """Say in its run directory that somebody is at work on it."""
        save(self._container.run_directory, self.state)

    def begin(self, mounts: list[Mount], window: tuple[int, int]) -> tuple[Init, Ends]:
        """Up to the execve of the container's command. Raises RuntimeFault, DriverError or OSError; then call
        `fail`."""
        with step("mount the root file system"):
            self._tree = open_tree(mounts)
            os.mkdir(self._container.rootfs, 0o700)  # where it is attached for a moment, before it is pivoted into
        spec = self._write_spec(self._tree.fd, window)
        with step("create the container"):
            ends = self._create(spec)
        assert self._init is not None
        with step(f"connect it to the network {self._config.network}"):
            endpoint = self._connect(self._init.pid)
        running = self.state.to(
            Status.RUNNING, pid=self._init.pid, task_pid=os.getpid(), started=time.time(), finished=0.0, exit_code=0,
            error="", address=f"{endpoint.address}/{endpoint.prefix}" if endpoint else "",
            gateway=endpoint.gateway if endpoint else "", mac=endpoint.mac if endpoint else "",
            places=self._led_elsewhere(self._init),
        )  # fmt: skip
        # Before its first instruction: from there on it may have something to lose, whatever goes down.
        with step("record that it runs"):
            if not self._config.remove:
                keep(self._container.directory, running)
            save(self._container.run_directory, running)
        oci.start(self._container.run_directory)
        self.state = running
        return self._init, ends

    def _led_elsewhere(self, init: Init) -> tuple[str, ...]:
        assert init.root is not None
        mounts = self._config.spec["mounts"]
        own = [mount["destination"] for mount in mounts if mount["type"] in ("bind", "file")]
        return tuple(trees.led_elsewhere(init.root, own))

    def _create(self, spec: dict[str, Any]) -> Ends:
        assert self._tree is not None and self._etc is not None
        root, etc = self._tree.fd, self._etc.fd
        if self._config.terminal:
            self._init = oci.create(self._container.run_directory, spec, root=root, files=etc)
            assert self._init.console is not None
            return Ends(console=self._init.console)
        theirs, ends = pipes(stdin=self._config.stdin)
        try:
            directory = self._container.run_directory
            self._init = oci.create(directory, spec, stdio=theirs, root=root, files=etc)
            return ends
        except BaseException:
            ends.close()
            raise
        finally:
            for fd in theirs:
                os.close(fd)

    def _write_spec(self, root: int, window: tuple[int, int]) -> dict[str, Any]:
        """The configuration completed with what only the root file system tells: with it the run directory is a
        bundle."""
        spec = self._config.spec
        process = spec["process"]
        with step("look its user up"):
            account = accounts.lookup(self._config.user, f"/proc/self/fd/{root}")
        process["user"] = {"uid": account.uid, "gid": account.gid, "additionalGids": list(account.groups)}
        if not any(entry.startswith("HOME=") for entry in process["env"]):
            process["env"].append(f"HOME={account.home}")
        if self._config.terminal and window != (0, 0):
            process["consoleSize"] = {"height": window[0], "width": window[1]}
        with step("make its files of /etc"):
            self._etc = EtcFiles(self._etc_texts(None))
        for mount in spec["mounts"]:
            if mount["type"] == "bind":
                _make_source(mount["source"])
        with step("record its specification"):
            self._container.record_running_spec(spec)
        return self._container.placed(spec)

    def _etc_texts(self, endpoint: Endpoint | None) -> dict[str, str]:
        hostname = self._config.spec["hostname"]
        return {
            "resolv.conf": self._network.resolv(),
            "hosts": self._network.hosts(hostname, endpoint),
            "hostname": files.hostname(hostname),
        }

    def _connect(self, pid: int) -> Endpoint | None:
        """The container's place on its network, None where it has no address."""
        endpoint = self._network.attach(pid, self._container.id)
        if endpoint is not None:
            assert self._etc is not None
            for name, text in self._etc_texts(endpoint).items():
                self._etc.write(name, text)
        return endpoint

    def end(self, exit_code: int) -> str:
        """Give back everything, then record how it ended, or remove the container. Returns what went wrong, or ""."""
        return self._rest(self.state.to(
            Status.EXITED, pid=0, task_pid=0, finished=time.time(), exit_code=exit_code,
            oom_killed=release.oom_killed(self._container),
        ))  # fmt: skip

    def fail(self, error: Exception) -> str:
        """Give back everything, and leave the container as it was, with why it could not be started; one that removes
        itself does so. What went wrong besides, "" if nothing."""
        code = _NOT_STARTED
        if isinstance(error, CommandNotFound):
            code = _NOT_FOUND
        elif isinstance(error, CommandNotExecutable):
            code = _NOT_EXECUTABLE
        return self._rest(self.state._replace(exit_code=code, error=sentence(error)))

    def _rest(self, final: State) -> str:
        leave = partial(release.endpoint, self._installation)
        trouble = release.attempt([release.processes, self._reap, leave, self._close_tree], self._container)

        def settle(container: Container) -> None:
            if self._config.remove:
                with self._installation:  # whoever hears of the end finds no driver open
                    release.discard(self._installation, container)
            else:
                with step("record how it ended"):
                    container.rest(final)

        if not trouble and (trouble := release.attempt([settle], self._container)) and self._config.remove:
            trouble = f"{self._config.name} is not removed yet, which the next command tries again: {trouble}"
        if trouble:
            # The next command finds by the run directory what is still held, and releases it again.
            told = "; ".join(filter(None, [final.error, trouble]))
            with suppress(OSError):
                save(self._container.run_directory, final._replace(error=told))
        return trouble

    def _reap(self, container: Container) -> None:
        if self._init is not None:
            self._init.wait()
            self._init = None

    def _close_tree(self, container: Container) -> None:
        if self._etc is not None:
            self._etc.close()
            self._etc = None
        if self._tree is not None:
            with suppress(InUse):
                self._tree.close(_PATIENCE)


def _make_source(path: str) -> None:
    """A volume's source that is missing becomes a directory, as with docker's -v: made as by a user, and not as
    private as ours are."""
    ours = os.umask(0o022)
    try:
        os.makedirs(path, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        if not os.path.exists(path):
            raise ConfigError(f"the volume source {path} cannot be made: a part of it is not a directory") from None
    except OSError as error:
        raise ConfigError(f"the volume source {path} cannot be made: {error.strerror}") from None
    finally:
        os.umask(ours)
