"""A user's terminal, signals and streams <-> a task's frames. What it knows of a task is what engine/frames.py draws.

    exec.py         another command in a running container
    foreground.py   the loop between our streams and a task's
    output.py       one of our outputs, which never keeps us waiting
    signals.py      signals held, caught and passed on       waiting.py    waits that signals cut short
    terminal.py     the user's terminal: raw mode and its size

Arrows (A <- B: B may import A): {signals, terminal, output} <- {waiting, foreground} <- exec.
Descriptors 0 to 2, signal handlers and terminal modes are this package's alone; the engine has none of them.
"""
