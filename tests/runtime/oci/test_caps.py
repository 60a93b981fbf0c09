"""Capability sets, read from /proc inside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from runtime.oci import caps, defaults

pytestmark = pytest.mark.needs("root")

Sh = Callable[..., str]

_DEFAULT = caps.mask(defaults.CAPABILITIES)


def _sets(sh: Sh, **changes: Any) -> dict[str, int]:
    out = sh("grep ^Cap /proc/self/status", **changes)
    return {line.split(":")[0].removeprefix("Cap"): int(line.split()[1], 16) for line in out.splitlines()}


def test_names_and_bits() -> None:
    assert (caps.BITS["CAP_CHOWN"], caps.BITS["CAP_SYS_ADMIN"], caps.BITS["CAP_CHECKPOINT_RESTORE"]) == (0, 21, 40)
    assert _DEFAULT == 0xA80425FB  # docker's, as everyone has seen it in /proc/self/status
    with pytest.raises(KeyError, match="CAP_FLY"):
        caps.mask(["CAP_CHOWN", "CAP_FLY"])


def test_docker_s_defaults_and_nothing_to_inherit(sh: Sh) -> None:
    """CVE-2022-24769, CVE-2022-27650: inheritable and ambient are empty."""
    assert _sets(sh) == {"Bnd": _DEFAULT, "Prm": _DEFAULT, "Eff": _DEFAULT, "Inh": 0, "Amb": 0}


def test_a_user_other_than_root_has_none_but_keeps_the_bound(sh: Sh) -> None:
    user = {"uid": 1000, "gid": 1000}
    assert _sets(sh, process__user=user) == {"Bnd": _DEFAULT, "Prm": 0, "Eff": 0, "Inh": 0, "Amb": 0}


def test_ambient_ones_survive_for_a_user(sh: Sh) -> None:
    bind = ["CAP_NET_BIND_SERVICE"]
    kinds = ("bounding", "permitted", "effective", "inheritable", "ambient")
    sets = _sets(sh, process__user={"uid": 1000, "gid": 1000}, process__capabilities=dict.fromkeys(kinds, bind))
    assert set(sets.values()) == {caps.mask(bind)}


def test_none_at_all(sh: Sh) -> None:
    assert set(_sets(sh, process__capabilities={}).values()) == {0}


def test_what_the_host_lacks_is_left_out(sh: Sh) -> None:
    every = {kind: list(caps.BITS) for kind in ("bounding", "permitted", "effective")}
    sets = _sets(sh, process__capabilities=every)
    with open("/proc/self/status", encoding="ascii") as status:
        held = next(int(line.split()[1], 16) for line in status if line.startswith("CapPrm"))
    assert sets["Prm"] == sets["Eff"] == held


def test_what_is_dropped_cannot_be_done(sh: Sh) -> None:
    out = sh("mount -t tmpfs x /bin 2>&1 || true; hostname other 2>&1 || true; mknod /dev/x c 1 3 && echo made")
    assert out.count("Operation not permitted") == 1 and "permission denied" in out and out.endswith("made\n")
    fewer = {kind: ["CAP_CHOWN"] for kind in ("bounding", "permitted", "effective")}
    assert "Operation not permitted" in sh("mknod /dev/x c 1 3 2>&1 || true", process__capabilities=fewer)


def test_ambient_capabilities_of_the_caller_do_not_stay() -> None:
    script = (
        "from runtime.oci import caps; from unionfs.linux import consts, processes as p\n"
        "held = p.permitted_capabilities(); p.capset(effective=held, permitted=held, inheritable=1)\n"
        "p.prctl(consts.PR_CAP_AMBIENT, consts.PR_CAP_AMBIENT_RAISE, 0)\n"
        "caps.become(permitted=1, effective=1, inheritable=1, ambient=0)\n"
        "print([line.split()[1].lstrip('0') for line in open('/proc/self/status') if line.startswith('CapAmb')])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout == "['']\n", run.stderr
