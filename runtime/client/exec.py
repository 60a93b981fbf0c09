"""`exec` in the foreground: another process in a running container, and our streams and signals for it."""

from __future__ import annotations

from runtime.client.foreground import foreground
from runtime.client.signals import held
from runtime.client.waiting import answered
from runtime.engine.containers.container import Container
from runtime.engine.containers.exec import ExecOptions, begin, configure


def execute(container: Container, options: ExecOptions) -> int:
    """Run the command to its end; its exit code. Raises RuntimeFault or OSError."""
    process = configure(container, options)
    with held():
        line, number = begin(container, process, stdin=options.stdin, answered=answered)
        with line:
            return foreground(line, number, stdin=options.stdin, wants_terminal=options.terminal).code
