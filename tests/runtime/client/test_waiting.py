"""Waits for an answer that signals cut short."""

from __future__ import annotations

import os
import signal
import time

from runtime.client import waiting
from runtime.client.signals import held


def test_an_answer_and_signals_that_come_before_it() -> None:
    """They are kept for what they are for."""
    heard = []
    before = {number: signal.signal(number, lambda n, _: heard.append(n)) for number in (signal.SIGTERM, signal.SIGHUP)}
    reader, writer = os.pipe()
    try:
        assert not waiting.answered(reader, 0.01) and heard == []
        os.kill(os.getpid(), signal.SIGHUP)
        heard.clear()
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
            started = time.monotonic()
            assert not waiting.answered(reader, 600.0)
            assert time.monotonic() - started < 300 and heard == []
            os.write(writer, b"x")
            assert waiting.answered(reader, 600.0) and heard == []
        assert heard == [signal.SIGTERM]
    finally:
        os.close(reader)
        os.close(writer)
        for number, handler in before.items():
            signal.signal(number, handler)
