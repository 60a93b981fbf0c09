"""The table of opcodes against the golden requests and the header's names."""

from __future__ import annotations

from tests.unionfs.fuse.golden import REQUESTS
from unionfs.fuse import abi, table

OPCODES = {
    name.removeprefix("FUSE_"): value
    for name, value in vars(abi).items()
    if name.startswith("FUSE_") and name.removeprefix("FUSE_") in REQUESTS
}
ROWS = [row for row in table.ROWS if row is not None]


def test_every_opcode_from_1_to_53_is_there_but_7_and_19() -> None:
    assert len(table.ROWS) == 54
    assert [opcode for opcode, row in enumerate(table.ROWS) if row is None] == [0, 7, 19]
    assert set(REQUESTS) == {row.name for row in ROWS}
    assert {row.name: row.opcode for row in ROWS} == OPCODES


def test_a_row_agrees_with_itself() -> None:
    for row in ROWS:
        assert table.ROWS[row.opcode] is row
        assert table.name(row.opcode) == row.name
        for layout in (row.request, row.reply):
            assert layout is None or layout in abi.FIELDS, row.name
        if row.data:
            assert row.request is not None
            counted = abi.FIELDS[row.request][row.counted]
            assert (counted, row.unit) in (("size", 1), ("in_size", 1), ("count", 16)), row.name


def test_a_row_agrees_with_the_kernel() -> None:
    for row in ROWS:
        golden = REQUESTS[row.name]
        assert len(golden.names) == row.names, row.name
        assert bool(golden.data) == row.data, row.name
        assert len(golden.fields) == (0 if row.request is None else len(abi.FIELDS[row.request])), row.name


def test_what_is_not_answered() -> None:
    silent = {row.name for row in ROWS if not row.answers}
    assert silent == {"FORGET", "BATCH_FORGET", "INTERRUPT", "NOTIFY_REPLY"}
    assert all(row.reply is None for row in ROWS if not row.answers)


def test_names_of_opcodes() -> None:
    assert table.name(1) == "LOOKUP"
    assert table.name(4096) == "CUSE_INIT"
    for opcode in (-1, 0, 7, 19, 54, 1 << 31):
        assert table.name(opcode) == f"opcode {opcode}"
