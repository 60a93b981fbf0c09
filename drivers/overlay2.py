"""The driver `overlay2`: directories of differences, put together by the kernel's overlayfs.

    <id>/fs      the layer, in overlayfs form: deleted is a character device 0:0, opaque is trusted.overlay.opaque=y
    <id>/work    overlayfs' own, for an active snapshot with a parent

See Documentation/filesystems/overlayfs.rst. Layers are native differences: with the features off that keep state
outside of a layer or point from one to another (index, redirect_dir, metacopy), a layer is exactly what was changed,
and can be stacked on by any mount. The price is EXDEV for the rename of a directory that has a lower part, and hard
links that a copy-up breaks.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence

from drivers.api import Kind, Probe
from drivers.directories import DirectorySnapshotter, begin_layer, bind
from drivers.graph import Wish
from drivers.layout import sync_directory
from drivers.mounts import Mount, layers_by_append, overlay_tree
from unionfs.linux.files import fd_path

# Said and not left to the kernel's configuration. "nofollow" is "off", and also does not follow redirects that a
# hostile layer brings along, which "off" does where redirect_always_follow is set.
FEATURES = ("index=off", "redirect_dir=nofollow", "metacopy=off")


OPTIONS: dict[str, str] = {}


class Driver(DirectorySnapshotter):
    """Nothing is mounted as an overlay that is one directory: a first layer, and a view of it, are binds."""

    NAME = "overlay2"

    def _begin(self, directory: str, wish: Wish, parents: Sequence[str]) -> None:
        layer, work = os.path.join(directory, "fs"), os.path.join(directory, "work")
        begin_layer(layer, parents if wish.kind is Kind.ACTIVE else (), _is_private)
        sync_directory(layer)
        if wish.kind is Kind.ACTIVE and parents:
            os.mkdir(work, 0o700)
            sync_directory(work)

    def _tree(self, directory: str, kind: Kind, parents: Sequence[str], *, volatile: bool) -> list[Mount]:
        layer = os.path.join(directory, "fs")
        if not parents:
            return bind(layer, kind)
        if kind is Kind.ACTIVE:
            return [overlay(parents, layer, os.path.join(directory, "work"), volatile=volatile)]
        return bind(parents[0], kind) if len(parents) == 1 else [overlay(parents)]


def overlay(lower: Sequence[str], upper: str = "", work: str = "", *, volatile: bool = False) -> Mount:
    """The Mount of an overlay; `lower` top first. Without `upper` it is read-only, and needs two of them."""
    layers = tuple(f"lowerdir+={path}" for path in lower)
    top: tuple[str, ...] = (f"upperdir={upper}", f"workdir={work}") if upper else ("ro",)
    if volatile:
        top += ("volatile",)
    return Mount("overlay", "overlay", (*layers, *top, *FEATURES))


def _is_private(attribute: bytes) -> bool:
    return attribute.startswith((b"trusted.overlay.", b"user.overlay."))


def probe(directory: str, options: Mapping[str, str]) -> Probe:
    """Mount an overlay in `directory`, detached from any tree, and see whether its differences are native ones."""
    lower, upper, work = (os.path.join(directory, name) for name in ("lower", "upper", "work"))
    for path in (lower, upper, work, f"{lower}/directory", f"{lower}/gone"):
        os.mkdir(path)
    key = "lowerdir+" if layers_by_append() else "lowerdir"
    mount = Mount("overlay", "overlay", (f"{key}={lower}", f"upperdir={upper}", f"workdir={work}", *FEATURES))
    try:
        tree = overlay_tree(mount)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return Probe(False, "this kernel has no overlayfs: modprobe overlay")
        return Probe(False, f"the kernel mounts no overlay here: {error.strerror}")
    try:
        os.rmdir(fd_path(tree, b"gone"))
        os.rmdir(fd_path(tree, b"directory"))
        os.mkdir(fd_path(tree, b"directory"))
        gone = os.stat(f"{upper}/gone", follow_symlinks=False)
        is_native = stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
        is_native &= os.getxattr(f"{upper}/directory", "trusted.overlay.opaque") == b"y"
    except OSError as error:
        return Probe(False, f"overlayfs cannot keep its differences here: {error.strerror}")
    finally:
        os.close(tree)
    if not is_native:
        return Probe(False, "overlayfs keeps its differences in a form that we do not know")
    return Probe(True, "native differences" if layers_by_append() else "native differences; up to about 200 layers")
