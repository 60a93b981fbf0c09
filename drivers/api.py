"""The Snapshotter: what a storage driver is.

A driver keeps *snapshots*: file trees that share what they have in common with their parent. It hands out a tree as a
list of `Mount` values and never mounts it, and it never sees a tar, a digest or an image. Making trees of mounts is
`drivers.mounts`; reading and writing layers as archives is `drivers.archive`, which works over the mounts of any
driver; what the names mean is the caller's business. The vocabulary is containerd's (core/snapshots).

The model
=========

A snapshot has a *kind*, which says what may be done with it:

    ACTIVE      a tree that is being written. Made by prepare(); ends by commit() or remove().
    COMMITTED   a tree that never changes again. Made by commit(); the only kind that can be a parent.
    VIEW        a tree to look at. Made by view(); ends by remove(). It cannot be committed.

                    prepare(key, parent)                 commit(name, key)
        parent ──────────────────────────▶ ACTIVE key ────────────────────────▶ COMMITTED name ──▶ a parent, in turn
           │                                  │ remove(key)                         │ remove(name), once it has no
           │        view(key, parent)         ▼                                     ▼ children
           └─────────────────────────────▶ VIEW key ── remove(key) ──▶ gone

Each snapshot has one parent or none, so the committed ones form a forest. A snapshot's content is its parent's content
with its own changes on top; how a driver keeps the changes (a directory of differences, a full copy, a thin device, a
dataset) shows nowhere but in its mounts.

What the arguments are called
=============================

    key       names an active snapshot or a view: something in progress, chosen by its user ("container-4f2a…")
    name      names a committed snapshot: something that is finished, usually chosen by content ("sha256:9ac1…")
    parent    the name of a committed snapshot; "" means none, and such a snapshot begins as an empty tree

Keys and names share one space: no two snapshots of a driver have the same one. Both are 1 to 255 printable ASCII
characters without space and "/", the first of them a letter or a digit. They are never used as paths.

How it is used
==============

A tree is mounted in one of two ways, and both give a mount that is attached nowhere: nobody finds it, no mount
namespace has a copy of it, and it ends with the process that has it, however that ends.

    private(mounts)      for whoever reads or writes a tree directly: the root directory of a mount on which no
                         set-user-ID bit, device or program has any effect, whatever a container has put there
    open_tree(mounts)    for whoever gives a tree to a container: attached in the container's mount namespace and
                         nowhere else, with all that a container may have

Importing an image's first layer. The key is random, so that two processes that import the same image do not meet; the
first to commit wins and the other removes its work:

    key = f"unpack-{uuid4().hex}"
    driver.prepare(key)
    try:
        with target.opened(driver, key) as place:       # drivers.archive.target: nothing is mounted that need not be
            extract(layer, place)
        driver.commit(chain_id, key)
    except AlreadyExists:
        driver.remove(key)                  # another process has finished the same layer

Importing the next layer is the same with prepare(key, chain_id_below); the name that it commits is the parent of the
one after it.

Running a container:

    mounts = driver.prepare(container_id, image_chain_id)
    with open_tree(mounts) as tree:         # … and again after a reboot, from driver.mounts(container_id)
        …                                   # attach `tree.fd` in the container's mount namespace, run it, wait for it
    driver.remove(container_id)             # or commit() it, which makes an image layer of what the container did

Looking into a layer, or comparing two, without a chance of changing either:

    with private(driver.view(a, "sha256:…")) as left, private(driver.view(b, "sha256:…")) as right: …

An active snapshot that is in use is looked at through the mount that it has, and not through a second one: a union and
an overlay do not survive somebody else changing their layers (drivers.mounts.at_rest tells whether one is in use).

Deleting an image: remove() its names from the top down. One that is still a parent raises InUse, and that is the
answer.

What holds for every driver
===========================

- *Only unmounted trees change state.* The caller unmounts an active snapshot before committing or removing it. A
  driver that can tell raises InUse; one that cannot would give a layer that still changes.
- *Mounts are values.* They name absolute paths, devices or datasets of this machine and stay valid until the snapshot
  is committed or removed. A driver whose snapshot is a block device or a dataset makes it available (activates it) in
  prepare(), view() and mounts(), so the Mount is only `Mount("ext4", "/dev/…", …)` or `Mount("zfs", "pool/…", …)`; it
  lets go of it in commit(), remove() and close(). Mounts of a view, and of nothing else, have the option "ro".
- *A tree without a parent is a plain tree.* Until it has a parent below it a driver may give it as a bind of its
  own directory; so names that the driver's form on disk reserves (`.wh.*` in AUFS form, character device 0:0 in
  overlayfs form) are for the writer of a first layer to keep out, as drivers.archive does.
- *What is committed is on disk.* commit() returns after the layer's data, the directories that name it and the row
  that says so are durable, written in that order. After a crash at any point a snapshot exists whole or not at all.
- *Nothing half-made is seen, and cleanup() takes it back.* A process that dies inside any method leaves at most
  things that no other method shows, and that cleanup() deletes.
- *Processes and threads may share a driver's root.* Every change of the graph is one transaction; long work (copying,
  deleting) happens outside of it. An object is not used across fork(): open the driver anew in the child.
- *The graph is small, the trees are not*: stat(), walk() and mounts() cost no more than the number of snapshots
  they touch; usage() of an active snapshot, commit() and remove() may walk a tree.

Errors are those of `drivers.errors`, and the OSError of the file system below for what is its own (ENOSPC, EIO).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol


class Kind(enum.Enum):
    ACTIVE = "active"
    VIEW = "view"
    COMMITTED = "committed"


@dataclass(frozen=True)
class Info:
    """What is known of a snapshot without looking into it.

    `parent` is "" where there is none. `created` and `updated` are nanoseconds since the epoch; committing counts as
    the creation of the committed snapshot. `labels` are the caller's notes: the driver keeps them and reads none.
    `quota` (bytes, 0 for none) and `volatile` are what prepare() was asked for.
    """

    name: str
    parent: str
    kind: Kind
    labels: Mapping[str, str] = field(default_factory=dict)
    created: int = 0
    updated: int = 0
    quota: int = 0
    volatile: bool = False


@dataclass(frozen=True)
class Mount:
    """One thing to mount: `options` are as in fstab(5), one to an element. The type says how:

        bind        source is a directory; options "rbind" (with what is mounted below it), "ro"
        overlay     the kernel's overlayfs; "lowerdir+=DIR" once a layer, top first, "upperdir=", "workdir=", with any
                    names, and its other options (drivers.mounts.overlayfs)
        unionfs     our own union; "br=/top=rw:/low=ro" as `unionfs mount -o` takes it (drivers.mounts.union)
        others      a file system of the kernel on a device or dataset: Mount("ext4", "/dev/…", ("discard",)),
                    Mount("zfs", "pool/…"). Options that are flags of a mount are such, the rest is the file system's
    """

    type: str
    source: str
    options: tuple[str, ...] = ()

    def describe(self) -> str:
        """A line for logs and `--debug`."""
        return f"{self.type} {self.source} ({','.join(self.options)})" if self.options else f"{self.type} {self.source}"


class Usage(NamedTuple):
    """What a snapshot takes on disk by itself, without its parents: inodes, and bytes allocated.

    For a driver that copies, this is the whole copy. Blocks shared by reflink are counted as if they were not.
    """

    inodes: int
    size: int


class Probe(NamedTuple):
    """Whether a driver works in some place, and a sentence on why not, or on how well."""

    works: bool
    reason: str


# How a directory of differences says what is gone: `.wh.NAME`; character devices 0:0 with trusted.overlay.opaque; and
# the same with user.overlay.opaque, in a user namespace. drivers.archive.marks reads and writes each.
Form = Literal["aufs", "overlay", "overlay-userxattr"]


class Differences(NamedTuple):
    """A directory that holds what a snapshot changed against its parent, and nothing else.

    Nothing that may be written to the mounted tree is a mark in it.
    """

    path: str
    form: Form


class Directories(NamedTuple):
    """The directories that the tree of an active snapshot is made of: its `own`, which is a Differences of that `form`
    and is written to, and those below it, nearest first, which are only read."""

    own: str
    parents: tuple[str, ...]
    form: Form


class Snapshotter(Protocol):
    """One driver on one root directory. See the module's text for the model and the words."""

    def prepare(
        self,
        key: str,
        parent: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        quota: int = 0,
        volatile: bool = False,
    ) -> list[Mount]:
        """Make the active snapshot `key` on `parent`, and give the mounts of its writable tree.

        With a `quota` (bytes) writing more than that, or than the driver rounds it to, fails with EDQUOT or ENOSPC.
        A `volatile` snapshot need not survive a crash of the machine while it is mounted: the driver may leave out
        syncing. Once it is committed it is as durable as any other.

        The root directory of the tree has the parent's mode, owner and attributes (0755 root:root without a parent).
        The caller ends the snapshot by commit() or remove(), whatever happens in between.

        Raises AlreadyExists (the key), NotFound (the parent), WrongState (the parent is not committed), InvalidName,
        NotSupported (a quota, where this driver cannot enforce one).
        When it raises there is no snapshot `key` that was not there before.
        """

    def view(self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Make the view `key` of `parent`, and give the mounts of a read-only tree with exactly its content.

        A view without a parent is an empty tree. It ends by remove(). Raises as prepare() does.
        """

    def mounts(self, key: str) -> list[Mount]:
        """The mounts of the active snapshot or view `key`, as prepare() or view() gave them.

        Raises NotFound; WrongState for a committed snapshot (make a view of it).
        """

    def differences(self, key: str) -> Differences | None:
        """Where the changes of a snapshot of any kind lie by themselves, or None if they have to be found by comparing
        its tree with its parent's. They may only be read, but even while the snapshot is mounted. Raises NotFound.
        """

    def directories(self, key: str) -> Directories | None:
        """What the active snapshot `key` is made of, for whoever knows the form and writes to it while it is not
        mounted (drivers.archive.target); or None if that can only be done through its mounts. Raises NotFound,
        WrongState.
        """

    def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> None:
        """Turn the active snapshot `key` into the committed snapshot `name`. The key is gone, and free again.

        The caller has unmounted it. `labels` are those of the new snapshot; the key's own are dropped with it.
        Returns when the layer would survive a power cut. When it raises, `key` is as it was, still active.

        Raises NotFound (the key), AlreadyExists (the name), WrongState (the key is a view, or committed), InUse
        (something still writes to it), InvalidName.
        """

    def stat(self, key: str) -> Info:
        """What is known of a snapshot of any kind. Raises NotFound."""

    def update(self, info: Info) -> Info:
        """Replace the labels of `info.name` by `info.labels`, all of them; nothing else of a snapshot can be changed.

        Meant for `driver.update(dataclasses.replace(driver.stat(name), labels={…}))`; gives what is stored now.
        Raises NotFound; WrongState when `info` says another parent or kind than the snapshot has.
        """

    def usage(self, key: str) -> Usage:
        """What the snapshot takes by itself. A committed one's was measured at commit; others are walked.

        Raises NotFound.
        """

    def walk(self) -> Iterator[Info]:
        """Every snapshot, parents before their children, as they are at the moment of the call.

        Snapshots may be made and removed while the caller iterates; `reversed(list(walk()))` is an order in which all
        of them can be removed.
        """

    def remove(self, key: str) -> None:
        """Delete a snapshot of any kind that is not a parent; the caller has unmounted it.

        It is gone from the graph, and its name free, when this returns or raises OSError; what could not be deleted
        of its tree is left to cleanup(). Raises NotFound; InUse while it has children.
        """

    def how_to_make_room(self) -> str:
        """What to do where a snapshot is full (ENOSPC, EDQUOT), as a part of a sentence for the user."""

    def cleanup(self) -> None:
        """Take back what processes that died have left. Safe at any time, beside any other use of the same root."""

    def close(self) -> None:
        """Let go of descriptors and devices. The snapshots stay. Twice is fine; other methods then say WrongState."""
