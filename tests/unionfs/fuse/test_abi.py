"""Constants, sizes and offsets against the C header that is installed, for as much as that knows."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct

import pytest

from unionfs.fuse import abi

HEADER = Path("/usr/include/linux/fuse.h")

# Structures that consist of several of C's, or of a part of one: (the structure, how its parts begin in FIELDS).
NESTED = {
    "ENTRY_OUT": "attr", "ATTR_OUT": "attr", "LK_IN": "lk", "LK_OUT": "lk", "STATFS_OUT": "st", "STATX_OUT": "stat",
}
OF_OUR_MAKING = {"CREATE_OUT", "SETXATTR_IN", "DIRENTPLUS"}
C_NAMES = {"REMOVEMAPPING_ONE": "removemapping_one", "FORGET_ONE": "forget_one"}
# Named otherwise by a later header than the installed one may be.
RENAMED = {"backing_id": "padding"}

STRUCTS = {name: value for name, value in vars(abi).items() if isinstance(value, Struct) and not name.startswith("_")}
CONSTANTS = {name: value for name, value in vars(abi).items() if isinstance(value, int)}


def c_struct(name: str) -> str:
    return f"cuse_{name[5:].lower()}" if name.startswith("CUSE_") else f"fuse_{name.lower()}"


def offsets(layout: Struct) -> Iterator[tuple[str, int]]:
    """(name, offset) of each field of a structure, from its format."""
    names, at = iter(abi.FIELDS[layout]), 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout.format[1:]):
        for _ in range(1 if code == "x" else int(count or 1)):
            if code == "x":
                at += int(count)
            else:
                yield next(names), at
                at += Struct("<" + code).size


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], list[int]]:
    """Runs a C program that prints integer expressions."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    if not HEADER.exists():
        pytest.skip(f"there is no {HEADER}")

    def run(expressions: list[str]) -> list[int]:
        source = tmp_path_factory.mktemp("abi") / "print.c"
        lines = [f'printf("%lld\\n", (long long)({expression}));' for expression in expressions]
        source.write_text(
            "#include <stdio.h>\n#include <stddef.h>\n#include <linux/fuse.h>\nint main(void) {\n"
            + "\n".join(lines) + "\nreturn 0; }\n"
        )
        program = source.with_suffix("")
        subprocess.run([compiler, "-o", program, source], check=True)
        return [int(line) for line in subprocess.run([program], capture_output=True, check=True).stdout.split()]

    return run


def declared(name: str) -> bool:
    return re.search(rf"\bstruct {name} {{", HEADER.read_text()) is not None


def test_sizes(evaluate: Callable[[list[str]], list[int]]) -> None:
    known = [name for name in STRUCTS if name not in OF_OUR_MAKING and declared(c_struct(name))]
    assert len(known) > 50
    assert evaluate([f"sizeof(struct {c_struct(name)})" for name in known]) == [STRUCTS[name].size for name in known]
    assert evaluate(["sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out)", "FUSE_COMPAT_SETXATTR_IN_SIZE",
                     "sizeof(struct fuse_direntplus)"]) == [
        abi.CREATE_OUT.size, abi.SETXATTR_IN.size, abi.DIRENTPLUS.size
    ]


def test_offsets(evaluate: Callable[[list[str]], list[int]]) -> None:
    wanted: list[tuple[str, int]] = []
    for name, layout in STRUCTS.items():
        if name in OF_OUR_MAKING or not declared(c_struct(name)):
            continue
        body = re.search(rf"struct {c_struct(name)} {{(.*?)}};", HEADER.read_text(), re.DOTALL)
        assert body is not None
        own = set(re.findall(r"(\w+)(?:\[\w*\])?;", body[1]))
        for field, at in offsets(layout):
            path = field if field in own else f"{NESTED[name]}.{field}" if name in NESTED else RENAMED.get(field)
            if path is not None and (path in own or "." in path):
                wanted.append((f"offsetof(struct {c_struct(name)}, {path})", at))
    assert len(wanted) > 150
    assert evaluate([expression for expression, _ in wanted]) == [at for _, at in wanted]


def test_constants(evaluate: Callable[[list[str]], list[int]]) -> None:
    text = HEADER.read_text()
    known = [name for name in CONSTANTS if re.search(rf"\b{name}\b\s*(=|\(?\d|\(1)", text) and "VERSION" not in name]
    assert len(known) > 120
    values = dict(zip(known, evaluate(known), strict=True))
    # FUSE_INIT_RESERVED is 1 << 31 in the int of C.
    assert {name: value & 0xFFFFFFFFFFFFFFFF for name, value in values.items() if name != "FUSE_INIT_RESERVED"} == {
        name: CONSTANTS[name] for name in known if name != "FUSE_INIT_RESERVED"
    }


def test_what_the_installed_header_may_not_know() -> None:
    """7.39 to 7.45, from include/uapi/linux/fuse.h of Linux 6.18."""
    assert (abi.STATX_IN.size, abi.STATX_OUT.size, abi.COPY_FILE_RANGE_OUT.size) == (24, 288, 8)
    assert dict(offsets(abi.STATX_OUT))["mask"] == 32
    assert dict(offsets(abi.STATX_OUT)) | {"mode": 60, "ino": 64, "atime": 96, "rdev_major": 160} == dict(
        offsets(abi.STATX_OUT)
    )
    assert dict(offsets(abi.INIT_OUT)) | {"max_stack_depth": 36, "request_timeout": 40} == dict(offsets(abi.INIT_OUT))
    assert dict(offsets(abi.OPEN_OUT))["backing_id"] == 12
    assert (abi.FUSE_STATX, abi.FUSE_COPY_FILE_RANGE_64) == (52, 53)
    assert (abi.FUSE_NOTIFY_RESEND, abi.FUSE_NOTIFY_INC_EPOCH, abi.FUSE_NOTIFY_PRUNE) == (7, 8, 9)
    assert abi.FUSE_PASSTHROUGH == 1 << 37


def test_a_wrong_size_is_seen_at_import() -> None:
    with pytest.raises(AssertionError, match="12 bytes, 16 in C"):
        abi._struct(16, "a Q, b I")
