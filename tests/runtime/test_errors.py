"""What users are told of an error."""

from __future__ import annotations

from runtime.errors import RegistryError, sentence


def test_an_error_writes_no_escape_sequences() -> None:
    """Whatever a registry says reaches the terminal as characters that can be seen."""
    assert sentence(RegistryError("it has \x1b[2J/\x9b1m\x07\nü \udcff")) == r"it has \x1b[2J/\x9b1m\x07 ü \udcff"
    assert sentence(OSError(2, "No such file", b"a\xff\x1b")) == r"a\udcff\x1b: No such file"
