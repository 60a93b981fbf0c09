from __future__ import annotations

import bz2
import gzip
import lzma
import os
import resource
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.archive.decompress import decompress, packing
from drivers.archive.errors import ArchiveError
from drivers.archive.limits import DEFAULT, Limits
from drivers.archive.reader import Reader
from tests.drivers.archive import tape

DATA = tape.archive(tape.file(b"random", os.urandom(300_000)), tape.file(b"zeros", bytes(300_000)))


def zstd(data: bytes) -> bytes:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd,
}  # fmt: skip
COMPRESSED = [form for form in FORMS if form != "plain"]


def read(path: Path | int, limits: Limits = DEFAULT, size: int = 50_000) -> bytes:
    with decompress(path, limits=limits) as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_by_its_first_bytes(form: str, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(FORMS[form](DATA))
    assert read(path) == DATA
    with open(path, "rb") as file:
        assert read(file.fileno()) == DATA


@pytest.mark.parametrize("form", COMPRESSED)
def test_several_streams_in_one_file(form: str, tmp_path: Path) -> None:
    """As `cat a.gz b.gz` and parallel compressors make them."""
    path = tmp_path / "archive"
    pieces = [DATA[start : start + 1000] for start in range(0, 100_000, 1000)]
    path.write_bytes(b"".join(map(FORMS[form], pieces)))
    assert read(path) == DATA[:100_000]


def test_zstd_frames_to_be_skipped(tmp_path: Path) -> None:
    """zstd:chunked has its table of contents in one at the end, pzstd the sizes of its frames in one before each."""

    def skipped(number: int, data: bytes) -> bytes:
        return (0x184D2A50 + number).to_bytes(4, "little") + len(data).to_bytes(4, "little") + data

    path = tmp_path / "archive"
    path.write_bytes(skipped(15, b"toc") + zstd(DATA[:1000]) + skipped(0, b"") + zstd(DATA[1000:]) + skipped(14, DATA))
    assert read(path) == DATA
    assert packing(path.read_bytes()[:6]) == "zstd"


def test_what_estargz_has_behind_the_layer(tmp_path: Path) -> None:
    """A gzip member for each piece of a file, and an empty one with the offset of the table of contents in its extra
    field (containerd/stargz-snapshotter docs/estargz.md)."""
    extra = b"SG\x16\x00" + b"%016xSTARGZ" % 1234
    empty = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + len(extra).to_bytes(2, "little") + extra + gzip.compress(b"")[10:]
    path = tmp_path / "archive"
    path.write_bytes(b"".join(gzip.compress(DATA[at : at + 50_000]) for at in range(0, len(DATA), 50_000)) + empty)
    assert read(path) == DATA


@pytest.mark.parametrize("form", ["gzip", "bzip2", "xz"])
def test_padding_at_the_end(form: str, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(FORMS[form](DATA) + bytes(300_000))
    assert read(path) == DATA


@pytest.mark.parametrize("form", COMPRESSED)
def test_a_cut_is_seen(form: str, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    whole = FORMS[form](DATA)
    for cut in (7, 20, len(whole) // 2, len(whole) - 5, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ArchiveError, match=f"the {form} data is (cut short|damaged)"):
            read(path)


@pytest.mark.parametrize("form", COMPRESSED)
def test_damage_is_seen(form: str, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    whole = bytearray(FORMS[form](DATA))
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ArchiveError, match=f"the {form} data is damaged") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", COMPRESSED)
def test_a_bomb_costs_its_limit(form: str, tmp_path: Path) -> None:
    """64 MiB of zeros in some kilobytes: not more than the limit and a buffer are ever made of it."""
    path = tmp_path / "bomb"
    path.write_bytes(FORMS[form](bytes(64 << 20)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with decompress(path, limits=Limits(total=4 << 20)) as stream:
        total = 0
        with pytest.raises(ArchiveError, match="larger than the 4194304 bytes that are allowed"):
            while piece := stream.read(1 << 20):
                total += len(piece)
        assert total <= 4 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10  # KiB


@pytest.mark.parametrize("form", ["bzip2", "xz", "zstd"])
def test_a_bomb_that_is_packed_as_nothing_else_is(form: str, tmp_path: Path) -> None:
    """A few hundred bytes for each megabyte; deflate cannot do it. A small one harms nobody."""
    path = tmp_path / "archive"
    packed = FORMS[form](bytes(8 << 20))
    path.write_bytes(packed * 8)
    assert len(read(path, size=1 << 20)) == 64 << 20
    path.write_bytes(packed * 9)
    with pytest.raises(ArchiveError, match="packed more than 1100 to 1"):
        read(path, size=1 << 20)


def test_zeros_that_gzip_packed_are_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(gzip.compress(bytes(100 << 20), 9))
    assert len(read(path, size=1 << 20)) == 100 << 20


def test_a_bomb_that_is_an_archive(tmp_path: Path) -> None:
    """One header that says 1 TiB, and zeros for it."""
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(tape.header(b"zeros", size=tape.base256(1 << 40, 12)) + bytes(1 << 20)))
    says = r"zeros \(byte 0\): it says it is 1099511627776"
    with decompress(path) as stream, pytest.raises(ArchiveError, match=says):
        list(Reader(stream))


def test_an_xz_stream_may_not_ask_for_much_memory(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(lzma.compress(DATA, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 64 << 20}]))
    with pytest.raises(ArchiveError, match="the xz data is damaged: Memory usage limit"):
        read(path, Limits(memory=16 << 20))


def test_a_zstd_stream_may_not_ask_for_much_memory(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    zstd(b"")
    command = ["zstd", "-qc", "--long=27"]
    path.write_bytes(subprocess.run(command, input=DATA * 40, stdout=subprocess.PIPE, check=True).stdout)
    with pytest.raises(ArchiveError, match="the zstd data is damaged or cut short"):
        read(path, Limits(memory=16 << 20))


def test_through_a_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with subprocess.Popen(["gzip", "-c"], stdin=subprocess.PIPE, stdout=writing) as child:
        os.close(writing)
        assert child.stdin is not None
        child.stdin.write(DATA[:30_000])
        child.stdin.close()
        assert read(reading) == DATA[:30_000]
    os.close(reading)


def test_zstd_through_a_pipe_is_refused() -> None:
    reading, writing = os.pipe()
    os.write(writing, zstd(b"data"))
    os.close(writing)
    with pytest.raises(ArchiveError, match="comes through a pipe; save it to a file first"):
        read(reading)
    os.close(reading)


def test_zstd_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "archive"
    path.write_bytes(b"\x28\xb5\x2f\xfd rest")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArchiveError, match="zstd, which is not installed; install zstd or use gzip"):
        read(path)


def test_zstd_is_not_left_running(tmp_path: Path) -> None:
    """Its reader stops early; the leak check after each test looks for the process."""
    path = tmp_path / "archive"
    path.write_bytes(zstd(bytes(50 << 20)))
    with decompress(path) as stream:
        assert stream.read(10)


def test_empty_gzip_members_are_no_loop(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(gzip.compress(b"") * 20_000 + gzip.compress(DATA))
    assert read(path) == DATA


def test_a_directory_and_nothing(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent")


def test_a_crc_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    whole = bytearray(gzip.compress(DATA))
    whole[-8:-4] = zlib.crc32(b"other").to_bytes(4, "little")
    path.write_bytes(whole)
    with pytest.raises(ArchiveError, match="incorrect data check"):
        read(path)
