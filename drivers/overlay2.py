"""The driver `overlay2`: directories of differences, put together by the kernel's overlayfs.

    <id>/fs      the layer, in overlayfs form: deleted is a character device 0:0, opaque is trusted.overlay.opaque=y
    <id>/work    overlayfs' own, for an active snapshot with a parent

See Documentation/filesystems/overlayfs.rst. Layers are native differences: with the features off that keep state
outside of a layer or point from one to another (index, redirect_dir, metacopy), a layer is exactly what was changed,
and can be stacked on by any mount. The price is EXDEV for the rename of a directory that has a lower part, and hard
links that a copy-up breaks.

In a user namespace, where "trusted." attributes cannot be set, layers have user.overlay.opaque instead (`userxattr`,
Linux 5.11); such a root is of use in user namespaces only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from functools import cache

from drivers.api import Differences, Directories, Form, Kind, Mount, Probe
from drivers.disk.durable import sync_directory
from drivers.disk.quota import delete_with_project, limit_directories, require_quotas
from drivers.errors import NotSupported
from drivers.graph.directories import DirectorySnapshotter, begin_layer, bind
from drivers.graph.snapshotter import NewSnapshot
from drivers.graph.transaction import Record
from drivers.mounts import overlayfs
from unionfs.linux.files import fd_path
from unionfs.linux.processes import in_user_namespace

# Set here, and not left to the kernel's configuration. "nofollow" is "off", and also does not follow redirects that a
# hostile layer brings along, which "off" does where redirect_always_follow is set.
FEATURES = ("index=off", "redirect_dir=nofollow", "metacopy=off")


OPTIONS: dict[str, str] = {}


class Driver(DirectorySnapshotter):
    """What is a single directory is not mounted as an overlay: a first layer, and a view of it, are binds."""

    NAME = "overlay2"

    def __init__(self, root: str, options: Mapping[str, str]) -> None:
        super().__init__(root, options, delete=delete_with_project)

    def _begin(self, directory: str, new: NewSnapshot, parents: Sequence[str]) -> None:
        if len(parents) > overlayfs.MAX_LAYERS:
            raise NotSupported(
                f"{new.parent} has {len(parents)} layers and overlayfs takes {overlayfs.MAX_LAYERS}: "
                "squash the image, or choose another storage driver"
            )
        layer, work = os.path.join(directory, "fs"), os.path.join(directory, "work")
        begin_layer(layer, parents if new.kind is Kind.ACTIVE else (), _is_private)
        sync_directory(layer)
        if new.kind is Kind.ACTIVE and parents:
            os.mkdir(work, 0o700)
            sync_directory(work)
        if new.quota:
            limit_directories([layer, work] if parents else [layer], new.quota)

    def _check_quota(self, quota: int) -> None:
        require_quotas(self._layout.path)

    def _tree(self, directory: str, kind: Kind, parents: Sequence[str], *, volatile: bool) -> list[Mount]:
        layer = os.path.join(directory, "fs")
        if not parents:
            return bind(layer, kind)
        if kind is Kind.ACTIVE:
            return [overlay(parents, layer, os.path.join(directory, "work"), volatile=volatile)]
        return bind(parents[0], kind) if len(parents) == 1 else [overlay(parents)]

    def _settle(self, record: Record) -> None:
        if record.info.volatile:
            overlayfs.check_volatile(self._layout.join(record.id, "work"))

    def differences(self, key: str) -> Differences | None:
        """The layer, whole because of FEATURES: with a redirect or metacopy, which archives must not bring either
        (drivers.archive.policy), an entry would say too little of itself."""
        with self._store.read() as transaction:
            record = transaction.get(key)
        return None if record.info.kind is Kind.VIEW else Differences(self._layer(record), _form())

    def directories(self, key: str) -> Directories | None:
        """Always given: FEATURES leave nothing outside of a layer. Docker unpacks into such directories as well."""
        return self._stacked(key, _form())


def overlay(lower: Sequence[str], upper: str = "", work: str = "", *, volatile: bool = False) -> Mount:
    """The Mount of an overlay; `lower` top first. Without `upper` it is read-only, and needs two of them."""
    layers = tuple(f"lowerdir+={path}" for path in lower)
    top: tuple[str, ...] = (f"upperdir={upper}", f"workdir={work}") if upper else ("ro",)
    if volatile:
        top += ("volatile",)
    return Mount("overlay", "overlay", (*layers, *top, *_features()))


@cache
def _features() -> tuple[str, ...]:
    return (*FEATURES, "userxattr") if in_user_namespace() else FEATURES


def _form() -> Form:
    return "overlay-userxattr" if "userxattr" in _features() else "overlay"


def _is_private(attribute: bytes) -> bool:
    return attribute.startswith((b"trusted.overlay.", b"user.overlay."))


def probe(directory: str, options: Mapping[str, str]) -> Probe:
    """Mount an overlay in `directory`, detached from any tree, and see whether its differences are native ones."""
    lower, upper, work = (os.path.join(directory, name) for name in ("lower", "upper", "work"))
    for path in (lower, upper, work, f"{lower}/again", f"{lower}/gone", f"{lower}/moved"):
        os.mkdir(path)
    with open(f"{lower}/file", "wb") as file:
        file.write(bytes(1 << 16))
    if not _gives_types(directory):
        return Probe(
            False,
            "directories do not tell the types of their entries (d_type), which overlayfs needs: make the file system "
            "anew, xfs with -n ftype=1, ext4 with -O filetype",
        )
    try:
        tree = overlayfs.overlay_tree(
            "overlay", (f"lowerdir+={lower}", f"upperdir={upper}", f"workdir={work}", *_features())
        )
    except OSError as error:
        if error.errno == errno.ENODEV:
            return Probe(False, "this kernel has no overlayfs: modprobe overlay")
        return Probe(False, f"the kernel mounts no overlay here: {error.strerror}")
    try:
        fault = _try_changes(tree, upper, work)
    except OSError as error:
        return Probe(False, f"overlayfs cannot keep its differences here: {error.strerror}")
    finally:
        os.close(tree)
    if fault:
        return Probe(False, f"layers would not be differences: {fault}")
    if overlayfs.takes_layers():
        how = "by descriptor" if overlayfs.takes_descriptors() else "by name"
        many = f"up to {overlayfs.MAX_LAYERS} layers, {how}"
    else:
        many = "up to about 220 layers, all that fit into the options of Linux before 6.8"
    attributes = "; user.overlay attributes (userxattr)" if "userxattr" in _features() else ""
    return Probe(True, f"native differences (d_type; index, redirect_dir and metacopy off){attributes}; {many}")


def _try_changes(tree: int, upper: str, work: str) -> str:
    """Change each kind of thing in the overlay `tree`. What is not a plain difference in `upper`, in words, or ""."""
    prefix = "user.overlay." if "userxattr" in _features() else "trusted.overlay."
    os.rmdir(fd_path(tree, b"gone"))
    gone = os.stat(f"{upper}/gone", follow_symlinks=False)
    if not (stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0):
        return "what is deleted is written down in a form that we do not know"
    os.rmdir(fd_path(tree, b"again"))
    os.mkdir(fd_path(tree, b"again"))
    if os.getxattr(f"{upper}/again", f"{prefix}opaque") != b"y":
        return "a replaced directory is written down in a form that we do not know"
    os.chmod(fd_path(tree, b"file"), 0o600)
    if f"{prefix}metacopy" in os.listxattr(f"{upper}/file") or os.stat(f"{upper}/file").st_blocks == 0:
        return "metacopy is on, whatever it is told"
    try:
        os.rename(fd_path(tree, b"moved"), fd_path(tree, b"elsewhere"))
        return "redirect_dir is on, whatever it is told"
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    if "index" in os.listdir(work):
        return "index is on, whatever it is told"
    return ""


def _gives_types(directory: str) -> bool:
    """Whether reading a directory gives the types of its entries.

    A DirEntry whose type was read keeps it; one whose type is unknown looks the file up, and here that is gone by then.
    """
    os.mkdir(f"{directory}/typed")
    with os.scandir(directory) as entries:
        typed = next(entry for entry in entries if entry.name == "typed")
    os.rmdir(typed.path)
    return typed.is_dir(follow_symlinks=False)
