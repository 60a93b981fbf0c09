"""The user's terminal: raw while a container has it, and as it was afterwards."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Raw mode for the terminal `fd`; its former mode is back however the block is left."""
    before = termios.tcgetattr(fd)
    try:
        # TCSADRAIN and not FLUSH: what the user has typed ahead is for the container.
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        with suppress(termios.error):  # hung up: it has no mode any more
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def window(fd: int) -> tuple[int, int]:
    """Rows and columns; (0, 0) for what is not a terminal."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return size.lines, size.columns
