"""Mount values made into trees, and taken away again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import drivers
from drivers.api import Mount
from drivers.errors import InUse, Unavailable
from drivers.mounts import overlayfs
from drivers.mounts.attached import mount_all, unmount_all
from drivers.mounts.union import branches
from drivers.overlay2 import overlay
from tests import trees
from tests.mounting import kill_server, mounted
from unionfs.linux.mounts import mounted_at, mountinfo

pytestmark = pytest.mark.needs("overlay")


@pytest.fixture
def layers(tmp_path: Path) -> list[str]:
    """Three directories, top first, whose names have everything in them that separates options."""
    paths = []
    for number in (2, 1, 0):
        path = str(tmp_path / f"layer{number}:a,b=c\\d e")
        trees.build(path, {f"in-{number}": str(number), "top": str(number)})
        paths.append(path)
    return paths


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "target").mkdir()
    return str(tmp_path / "target")


MERGED: trees.Tree = {"in-0": "0", "in-1": "1", "in-2": "2", "top": "2"}


def test_bind(tmp_path: Path, target: str) -> None:
    trees.build(str(tmp_path / "source"), {"f": "1"})
    mount_all([Mount("bind", str(tmp_path / "source"), ("rw",))], target)
    Path(target, "g").write_text("2")
    unmount_all(target)
    trees.assert_tree(str(tmp_path / "source"), {"f": "1", "g": "2"})


def test_a_read_only_bind_is_never_writable(tmp_path: Path, target: str) -> None:
    trees.build(str(tmp_path / "source"), {"f": "1"})
    mount_all([Mount("bind", str(tmp_path / "source"), ("ro", "nosuid", "nodev"))], target)
    point = mounted_at(target)
    assert point is not None and {"ro", "nosuid", "nodev"} <= set(point.options.split(","))
    with pytest.raises(OSError, match="Read-only"):
        Path(target, "f").write_text("2")
    unmount_all(target)


def test_rbind_takes_what_is_mounted_below(tmp_path: Path, target: str) -> None:
    trees.build(str(tmp_path / "source"), {"sub": {}})
    mount_all([Mount("tmpfs", "tmpfs")], str(tmp_path / "source/sub"))
    Path(tmp_path, "source/sub/f").write_text("tmpfs")
    mount_all([Mount("bind", str(tmp_path / "source"), ("rbind", "ro"))], target)
    assert Path(target, "sub/f").read_text() == "tmpfs"
    with pytest.raises(OSError, match="Read-only"):
        Path(target, "sub/f").write_text("")
    with pytest.raises(InUse, match="is busy"):
        unmount_all(target)
    unmount_all(f"{target}/sub")
    unmount_all(target)
    unmount_all(str(tmp_path / "source/sub"))


@pytest.fixture(params=["by descriptor", "by name", "by option string"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways to tell overlayfs its layers: those of Linux 6.13, of 6.8, and of all before."""
    way: str = request.param
    if way == "by descriptor" and not overlayfs.takes_descriptors():
        pytest.skip("this kernel's overlayfs takes no layers by descriptor (Linux 6.13)")
    if way != "by option string" and not overlayfs.takes_layers():
        pytest.skip("this kernel's overlayfs has no lowerdir+ (Linux 6.8)")
    monkeypatch.setattr(overlayfs, "takes_layers", lambda: way != "by option string")
    monkeypatch.setattr(overlayfs, "takes_descriptors", lambda: way == "by descriptor")
    return way


def test_overlay_names_need_no_escapes(tmp_path: Path, layers: list[str], way: str) -> None:
    work = tmp_path / "work, of: it\\"
    work.mkdir()
    with mounted([overlay(layers[1:], layers[0], str(work))]) as path:
        trees.assert_tree(path, MERGED)
        os.unlink(f"{path}/in-0")
        options = mounted_at(path).super_options.split(",")  # type: ignore[union-attr]
        assert not {"index=on", "redirect_dir=on", "redirect_dir=follow", "metacopy=on"} & set(options)
    assert sorted(os.listdir(layers[0])) == ["in-0", "in-2", "top"]
    with mounted([overlay(layers)]) as path:
        trees.assert_tree(path, {"in-1": "1", "in-2": "2", "top": "2"})
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir(f"{path}/new")


def test_overlay_names_may_be_long(tmp_path: Path, way: str) -> None:
    """Each directory of the overlay has a path of more than 600 bytes: fsconfig(2) takes strings of 255."""
    place = tmp_path / ("x:" * 100) / ("y," * 100) / ("z\\" * 100)
    trees.build(str(place), {"low": {"f": "1"}, "lower": {"g": "2"}, "upper": {}, "work": {}})
    assert len(str(place)) > 600
    mount = overlay([str(place / "lower"), str(place / "low")], str(place / "upper"), str(place / "work"))
    with mounted([mount]) as path:
        trees.assert_tree(path, {"f": "1", "g": "2"})
        Path(path, "h").write_text("3")
    assert (place / "upper/h").read_text() == "3"


def test_overlay_layers_without_end(tmp_path: Path, target: str, way: str) -> None:
    """As many as the kernel stacks, with long names, and few descriptors; or as many as a page of options holds, and
    a sentence on how many that would be."""
    paths = [str(tmp_path / ("x" * 200) / str(number)) for number in range(overlayfs.MAX_LAYERS)]
    for path in paths:
        trees.build(path, {os.path.basename(path): ""})
    if way == "by option string":
        with pytest.raises(OSError, match=r"500 layers, of which \d+ fit") as refused:
            mount_all([overlay(paths)], target)
        assert refused.value.errno == errno.E2BIG
        fit = int(str(refused.value).split("of which ")[1].split()[0])
        assert fit > 200
        with pytest.raises(OSError, match="of which"):
            mount_all([overlay(paths[: fit + 2])], target)
        paths = paths[: fit - 2]  # descriptors have one digit more or less
    with mounted([overlay(paths)]) as path:
        assert len(os.listdir(path)) == len(paths)
        assert os.path.exists(f"{path}/{len(paths) - 1}")


@pytest.fixture
def volatile(tmp_path: Path) -> Mount:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    return overlay([str(tmp_path / "lower")], str(tmp_path / "upper"), str(tmp_path / "work"), volatile=True)


def test_a_volatile_overlay_is_mounted_again(tmp_path: Path, volatile: Mount, way: str) -> None:
    for turn in range(3):
        with mounted([volatile]) as path:
            assert "volatile" in mounted_at(path).super_options  # type: ignore[union-attr]
            assert len(os.listdir(path)) == turn
            Path(path, str(turn)).write_text("x")
    assert os.path.isdir(tmp_path / "work/work/incompat/volatile")


@pytest.mark.parametrize("boot", ["", "cafe", "another-boot"])
def test_a_volatile_overlay_of_before_a_restart(tmp_path: Path, volatile: Mount, target: str, boot: str) -> None:
    """What had not reached the disk is lost, and nobody can say what that was."""
    with mounted([volatile]) as path:
        Path(path, "f").write_text("x")
    (tmp_path / "work/boot").write_text(boot)
    with pytest.raises(Unavailable, match="before this machine was restarted, so it may be torn: remove"):
        mount_all([volatile], target)
    assert mounted_at(target) is None


def test_a_volatile_overlay_that_was_not_mounted_before(tmp_path: Path, volatile: Mount) -> None:
    """It was made before a restart, but nothing was written to it."""
    (tmp_path / "work/boot").write_text("another-boot")
    for _ in range(2):
        with mounted([volatile]) as path:
            assert os.listdir(path) == []


def test_a_refusal_says_what_the_kernel_says(tmp_path: Path, target: str) -> None:
    with pytest.raises(OSError, match="No such file") as refused:
        mount_all([Mount("bind", str(tmp_path / "missing"))], target)
    assert refused.value.filename is not None
    with pytest.raises(OSError, match="No such file"):
        mount_all([overlay([str(tmp_path / "missing")], str(tmp_path), str(tmp_path))], target)
    assert mounted_at(target) is None


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        (Mount("no-such-type", "pool/layer"), "this kernel has no no-such-type: modprobe no-such-type"),
        (Mount("ext4", "/dev/no-such-disk", ("ro",)), r"ext4 /dev/no-such-disk \(ro\) cannot be mounted, for it is mi"),
    ],
    ids=["type", "source"],
)
def test_what_is_missing_is_named(mount: Mount, said: str, target: str) -> None:
    """And not the place where it was to be seen."""
    with pytest.raises(Unavailable, match=said) as refused:
        mount_all([mount], target)
    assert target not in str(refused.value)
    assert mounted_at(target) is None


def test_a_stack_is_undone_when_one_of_it_fails(tmp_path: Path, target: str) -> None:
    trees.build(str(tmp_path / "source"), {})
    good = Mount("bind", str(tmp_path / "source"))
    mount_all([good], target)
    with pytest.raises(OSError, match="No such file"):
        mount_all([good, Mount("tmpfs", "tmpfs"), Mount("bind", str(tmp_path / "missing"))], target)
    assert [point.target for point in mountinfo()].count(target) == 1
    mount_all([good, Mount("tmpfs", "tmpfs")], target)
    unmount_all(target)
    assert mounted_at(target) is None


def test_unmounting_nothing_is_fine(tmp_path: Path, target: str) -> None:
    unmount_all(target)
    unmount_all(str(tmp_path / "missing"))


def test_a_busy_tree_is_in_use(tmp_path: Path, target: str) -> None:
    mount_all([Mount("tmpfs", "tmpfs")], target)
    with open(f"{target}/f", "w"), pytest.raises(InUse, match="target is busy"):
        unmount_all(target)
    unmount_all(target)


def test_mounted_leaves_nothing_when_its_body_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), mounted([Mount("tmpfs", "tmpfs")]) as path:
        Path(path, "f").write_text("x")
        _ = 1 // 0
    assert not os.path.exists(path)
    with pytest.raises(OSError, match="No such file"), mounted([Mount("bind", "/no/such/place")]) as path:
        pass


def test_a_mount_describes_itself() -> None:
    assert Mount("bind", "/a", ("ro",)).describe() == "bind /a (ro)"
    assert Mount("zfs", "pool/a").describe() == "zfs pool/a"


# Our own union, as a process of its own.


@pytest.mark.needs("fuse")
def test_unionfs_names_are_escaped(layers: list[str]) -> None:
    stack = [(layers[0], "rw"), (layers[1], "ro"), (layers[2], "rr")]
    with mounted([Mount("unionfs", "unionfs", (branches(stack),))]) as path:
        trees.assert_tree(path, MERGED)
        Path(path, "new").write_text("new")
    assert Path(layers[0], "new").read_text() == "new"


@pytest.mark.needs("fuse")
def test_a_unions_server_has_ended_when_it_is_unmounted(layers: list[str], target: str) -> None:
    """Its branch is free at once: another union can write to it, a hundred times over if need be."""
    for turn in range(3):
        mount_all([Mount("unionfs", "unionfs", (branches([(layers[0], "rw"), (layers[1], "ro")]),))], target)
        Path(target, "turn").write_text(str(turn))
        unmount_all(target)
    assert Path(layers[0], "turn").read_text() == "2"


@pytest.mark.needs("fuse")
def test_a_union_whose_server_was_killed_is_unmounted(layers: list[str], target: str) -> None:
    mount_all([Mount("unionfs", "unionfs", (branches([(layers[0], "rw"), (layers[1], "ro")]),))], target)
    kill_server(target)
    unmount_all(target)
    assert mounted_at(target) is None


@pytest.mark.needs("fuse")
def test_the_sentence_of_unionfs_is_passed_on(tmp_path: Path, target: str) -> None:
    with pytest.raises(Unavailable, match="missing"):
        mount_all([Mount("unionfs", "unionfs", (branches([(str(tmp_path / "missing"), "rw")]),))], target)
    with pytest.raises(Unavailable, match="no-such-option"):
        mount_all([Mount("unionfs", "unionfs", ("no-such-option",))], target)
    assert mounted_at(target) is None


@pytest.mark.needs("fuse")
def test_the_working_directory_does_not_decide_which_package_serves(tmp_path: Path, layers: list[str]) -> None:
    """A container's build directory may well have a package `unionfs` of its own, or a module `struct`."""
    trees.build(str(tmp_path / "build"), {"unionfs": {"__init__.py": "raise SystemExit(9)"}, "struct.py": "1/0"})
    script = (
        "import os, sys\nfrom drivers.api import Mount\n"
        "from drivers.mounts.tree import private\nfrom drivers.mounts.union import branches\n"
        "mount = Mount('unionfs', 'unionfs', (branches([(sys.argv[1], 'ro')]),))\n"
        "os.chdir(sys.argv[2])\nwith private([mount]) as root: print(sorted(os.listdir(root)))"
    )
    root = os.path.dirname(os.path.dirname(drivers.__file__))
    command = [sys.executable, "-c", script, layers[0], str(tmp_path / "build")]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("['in-2', 'top']\n", "")
