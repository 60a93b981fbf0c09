from __future__ import annotations

from pathlib import Path

import pytest

from runtime.engine.networks import files

PUBLIC = "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"


def resolv(host: str, resolved: str = "") -> str:
    return files.resolv({files.HOST_RESOLV: host, files.RESOLVED_RESOLV: resolved}.__getitem__)


@pytest.mark.parametrize(
    ("host", "resolved", "expected"),
    [
        ("search a.example\nnameserver 192.0.2.1\n", "", "search a.example\nnameserver 192.0.2.1\n"),
        ("nameserver 127.0.0.1\nnameserver 192.0.2.1\noptions rotate\n", "", "options rotate\nnameserver 192.0.2.1\n"),
        ("nameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.9\n", "options edns0\nnameserver 192.0.2.9\n"),
        ("nameserver 127.0.0.53\n", "", PUBLIC),
        ("nameserver ::1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\n", "", PUBLIC),
        ("nameserver\nnameserver nonsense\n#nameserver 192.0.2.1\n", "",
         "#nameserver 192.0.2.1\n" + PUBLIC),
        ("", "", PUBLIC),
    ],
)  # fmt: skip
def test_resolv(host: str, resolved: str, expected: str) -> None:
    assert resolv(host, resolved) == expected


@pytest.mark.parametrize("no_end", "\r\v\f\x1c\x85\u2028", ids=ascii)
def test_lines_end_at_newlines_only(no_end: str, tmp_path: Path) -> None:
    """To res_init(3) this is one comment, or one nameserver that is none."""
    text = f"#{no_end}nameserver 192.0.2.1\nnameserver\u00a0192.0.2.2\nnameserver 192.0.2.3\n"
    (tmp_path / "resolv.conf").write_bytes(text.encode())
    assert files.nameservers(files.read(str(tmp_path / "resolv.conf"))) == ["192.0.2.3"]
    assert resolv(text) == f"#{no_end}nameserver 192.0.2.1\nnameserver\u00a0192.0.2.2\nnameserver 192.0.2.3\n"


def test_a_missing_file_is_an_empty_one() -> None:
    assert files.read("/nonexistent/resolv.conf") == ""


def test_hosts() -> None:
    text = files.hosts("web", "172.30.0.2")
    assert text.splitlines()[0] == "127.0.0.1\tlocalhost"
    assert text.splitlines()[-1] == "172.30.0.2\tweb"
    assert files.hosts("web").splitlines()[-1] == "127.0.0.1\tweb"
    assert files.hosts("web.example", "172.30.0.2").splitlines()[-1] == "172.30.0.2\tweb.example web"
    assert files.hostname("web") == "web\n"
