"""Whether the host forwards IPv4 packets, and who said so.

The switch is one for the whole host, so the bridges of all roots share it. The first one that finds it off turns it
on and says so in its alias, as every bridge that joins then does; the last of them to go turns it off again. A bridge
that found it on leaves it alone. The mark is in the kernel because the switch is: neither outlives a reboot.
"""

from __future__ import annotations

import os

from runtime.errors import NetworkError

_SWITCH = "/proc/sys/net/ipv4/ip_forward"


def is_on() -> bool:
    fd = os.open(_SWITCH, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1) == b"1"
    finally:
        os.close(fd)


def turn(on: bool) -> None:
    try:
        fd = os.open(_SWITCH, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1" if on else b"0")
        finally:
            os.close(fd)
    except OSError as error:
        state = "on" if on else "off"
        raise NetworkError(f"cannot turn {state} net.ipv4.ip_forward: {error.strerror}") from error
