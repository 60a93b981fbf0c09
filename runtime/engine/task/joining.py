"""A process on its way into the container, for the client that asked for it. None of its steps waits: the process
may be in the kernel for long, looking for its command on a union whose server is stopped, or stand still with the
container.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from runtime.engine.stdio import Ends, pipes
from runtime.engine.task.connection import Connection
from runtime.errors import ConfigError, step
from runtime.oci import container as oci
from runtime.oci.process import Init


class Joining:
    """`fileno` is readable when `advance` has something to hear; `unreaped` as of a Birth (oci/parent.py); `init` is
    None as long as the process is not ready for its command, and afterwards somebody has to collect it."""

    def __init__(self, directory: str, wish: Any, client: Connection) -> None:
        """`wish` is the payload of an EXEC. Raises RuntimeFault."""
        if not isinstance(wish, dict) or not isinstance(wish.get("process"), dict):
            raise ConfigError("process: an object is needed")
        self.client = client
        self.init: Init | None = None
        process = wish["process"]
        self._ends = Ends()
        theirs = None
        try:
            with step("start the command"):
                if not process.get("terminal"):
                    # Never the client's own: through one the process could open its file anew, or leave by its
                    # directory (CVE-2024-21626), and one that it leaves behind would keep the client's reader waiting.
                    theirs, self._ends = pipes(stdin=bool(wish.get("stdin")))
                self._birth = oci.join(directory, process, stdio=theirs)
        except BaseException:
            self._ends.close()
            raise
        finally:
            for fd in theirs or ():
                os.close(fd)

    @property
    def unreaped(self) -> dict[int, int]:
        return self._birth.unreaped

    def fileno(self) -> int:
        return self._birth.fileno()

    def advance(self) -> tuple[Init, Ends] | None:
        """The process and our ends of its streams, when its command runs. RuntimeFault if that cannot be; then
        `give_up`."""
        with step("start the command"):
            if self.init is not None:
                self.init.started()
                return self.init, self._ends
            child = self._birth.advance()
            if child is not None:
                self.init = Init(child)
                if child.console is not None:
                    self._ends = Ends(console=child.console)
                with suppress(BrokenPipeError):  # it was killed meanwhile: its end of file comes next
                    self.init.begin()
        return None

    def give_up(self) -> None:
        """Nobody wants it any more, or it cannot run."""
        if self.init is None:
            self._birth.give_up()
        else:
            self.init.kill()
        self._ends.close()
