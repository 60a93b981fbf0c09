"""A standard output of ours, written as far as it takes it."""

from __future__ import annotations

import fcntl
import os

from runtime.client.output import Output


def test_a_pipe_is_filled_at_once() -> None:
    """As far as it goes, without waiting, and without a word to who else writes to it."""
    reader, writer = os.pipe()
    try:
        room = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
        output = Output(writer)
        output.add(bytes(range(256)) * (2 * room // 256))
        assert len(output.queue) == room
        output.write()
        assert len(output.queue) == room
        assert os.read(reader, room) == bytes(range(256)) * (room // 256)
        output.drain()
        assert not output.queue
        assert os.read(reader, room) == bytes(range(256)) * (room // 256)
        assert os.get_blocking(writer)
        output.close()
        os.close(writer)
        writer = -1
        assert os.read(reader, 1) == b""
    finally:
        for fd in (reader, writer):
            if fd >= 0:
                os.close(fd)
