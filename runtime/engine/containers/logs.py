"""The log of a container in Docker's json-file form: a JSON object a line, {"log", "stream", "time"}.

Bytes that are not UTF-8 are written as lone surrogates (PEP 383), so that reading the log gives back every byte.
A line longer than LINE is split, as Docker does; only the last part ends with a newline.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from json.encoder import encode_basestring_ascii
from typing import BinaryIO, NamedTuple

LINE = 16 << 10

# What most lines are made of, and what of that JSON has escapes for, the backslash first; the newline goes by itself.
_PLAIN = bytes(range(0x20, 0x7F)) + b"\n\r\t\x1b"
_ESCAPES = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\r", b"\\r"), (b"\t", b"\\t"), (b"\x1b", b"\\u001b"))


class Entry(NamedTuple):
    stream: str  # "stdout" or "stderr"
    data: bytes


def timestamp(moment: int) -> str:
    """RFC 3339 with nanoseconds, of a time in nanoseconds since the epoch."""
    seconds, fraction = divmod(moment, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


class Writer:
    """Appends output to a log, line by line. One writer a log."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._partial = {"stdout": bytearray(), "stderr": bytearray()}

    def write(self, stream: str, data: bytes) -> bool:
        """Whether any line was finished. A full disk loses log lines, never the container's output elsewhere."""
        waiting = self._partial[stream]
        waiting += data
        moment = timestamp(time.time_ns())
        start = waiting.rfind(b"\n") + 1
        whole = _whole_lines(stream, bytes(waiting[:start]), moment)
        if whole is None:
            start, whole = 0, b""
        lines = []
        while start < len(waiting):
            end = waiting.find(b"\n", start, start + LINE) + 1
            if not end:
                if len(waiting) - start < LINE:
                    break
                end = start + LINE
            lines.append(_line(stream, waiting[start:end], moment))
            start = end
        del waiting[:start]
        return self._append(whole + "".join(lines).encode())

    def close(self) -> None:
        """Write the last line, if no newline has ended it."""
        moment = timestamp(time.time_ns())
        self._append("".join(_line(stream, rest, moment) for stream, rest in self._partial.items() if rest).encode())
        os.close(self._fd)

    def _append(self, data: bytes) -> bool:
        before, written = os.fstat(self._fd).st_size, 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            # The disk may be full in the middle of a line: the next must not be appended to it.
            os.ftruncate(self._fd, before + data.rfind(b"\n", 0, written) + 1)
            return False
        return bool(data)


def _whole_lines(stream: str, data: bytes, moment: str) -> bytes | None:
    """The lines of `data`, which ends with a newline or is empty; None if one is too long. All are written at once:
    where a character is cut off at a newline, it is so by itself too."""
    lines = data.split(b"\n")
    if max(map(len, lines)) >= LINE:
        return None
    begin, end = b'{"log":"', f'\\n","stream":"{stream}","time":"{moment}"}}\n'.encode()
    if not data.translate(None, _PLAIN):
        for byte, escape in _ESCAPES:
            data = data.replace(byte, escape)
        return begin + data[:-1].replace(b"\n", end + begin) + end if data else b""
    texts = data.decode("utf-8", "surrogateescape").split("\n")
    return b"".join([begin[:-1] + encode_basestring_ascii(text)[:-1].encode() + end for text in texts[:-1]])


def _line(stream: str, data: bytearray, moment: str) -> str:
    """Not through json.dumps: a container may write a million lines a second, and only the text needs escapes."""
    text = encode_basestring_ascii(data.decode("utf-8", "surrogateescape"))
    return f'{{"log":{text},"stream":"{stream}","time":"{moment}"}}\n'


class Reader:
    """Reads a log from its beginning to what is its end then, since a container may write faster than anybody reads;
    `entries` again gives what was added since, also when it has been removed, or cut in its place, as logrotate does.

    `tell` hears once of a damaged log: what is not a line of one is left out.
    """

    def __init__(self, path: str, *, tell: Callable[[str], object] | None = None) -> None:
        self._path = path
        self._tell = tell
        self._file: BinaryIO | None = None
        self._offset = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def entries(self) -> Iterator[Entry]:
        if self._file is None:
            try:
                self._file = open(self._path, "rb")  # noqa: SIM115 (closed with the reader)
            except FileNotFoundError:
                return  # the container never started
        end = self._file.seek(0, os.SEEK_END)  # what was read ahead is forgotten: it may have been cut off
        if end < self._offset:
            self._offset = 0
        self._file.seek(self._offset)
        while self._offset < end:
            line = self._file.readline()
            if not line.endswith(b"\n"):
                return  # the writer is in the middle of it
            begin, self._offset = self._offset, self._offset + len(line)
            entry = _entry(line)
            if entry is not None:
                yield entry
            elif self._tell is not None:
                self._tell(f"{self._path}: what is no line of a log is left out, at byte {begin} first")
                self._tell = None


def _entry(line: bytes) -> Entry | None:
    """None for what is not a line of a log. Zeros before one are what a power cut has left of others."""
    try:
        # As text: json.loads() takes bytes with zeros at their beginning for UTF-32.
        record = json.loads(line.decode().lstrip("\0"))
        stream, data = record["stream"], record["log"].encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None
    return Entry(stream, data) if stream in ("stdout", "stderr") else None
