"""Which disks a thin pool may be made on, and whether they are its own: read before any kernel is given them."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from drivers.api import Mount
from drivers.devicemapper import blank, direct, label, proof, records, superblock, thinmeta
from drivers.devicemapper.backing import DATA, METADATA, Devices, Disk, Files, Lower
from drivers.devicemapper.settings import parse_settings
from drivers.disk import loop
from drivers.errors import Unavailable
from tests.mounting import mounted

pytestmark = pytest.mark.needs("loop", "program:mkfs.ext4")

MIB = 1 << 20
BLOCK = 128  # sectors
OURS, THEIRS = b"the identity: 16", b"another's 16 ...."[:16]


def file_of(path: Path, size: int, content: bytes = b"", position: int = 0) -> Path:
    with open(path, "wb") as file:
        file.truncate(size)
        file.seek(position if position >= 0 else size + position)
        file.write(content)
    return path


@contextmanager
def attached(*paths: Path) -> Iterator[list[str]]:
    with ExitStack() as held:
        yield [held.enter_context(loop.attached(str(path))) for path in paths]


@contextmanager
def lower(metadata: Path, data: Path) -> Iterator[Lower]:
    with attached(metadata, data) as (below, above), devices(below, above).attached() as found:
        yield found


def devices(metadata: str, data: str, *, force: bool = False) -> Devices:
    forced = {"dm.directlvm_device_force": "true"} if force else {}
    return Devices(parse_settings({"dm.metadatadev": metadata, "dm.datadev": data, **forced}))


def digests(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


# Before a pool is made: is there something on it?

SIZE = 24 * MIB
SIGNS: dict[str, Callable[[Path], object]] = {
    "ext4": lambda path: run("mkfs.ext4", "-q", "-F", path),
    "swap": lambda path: run("mkswap", path),
    "a table of partitions": lambda path: file_of(path, SIZE, b"EFI PART", 512),
    "mdadm 1.2": lambda path: file_of(path, SIZE, b"\xfc\x4e\x2b\xa9", 4096),
    "mdadm 1.0": lambda path: file_of(path, SIZE, b"\xfc\x4e\x2b\xa9", -8192),
    "mdadm 0.90": lambda path: file_of(path, SIZE, b"\xfc\x4e\x2b\xa9", -65536),
    "LUKS": lambda path: file_of(path, SIZE, b"LUKS\xba\xbe\x00\x02"),
    "LVM": lambda path: file_of(path, SIZE, b"LABELONE", 512),
    "VMFS": lambda path: file_of(path, SIZE, b"\x0d\xd0\x01\xc0", MIB),
    "the last byte": lambda path: file_of(path, SIZE, b"x", -1),
}


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


@pytest.mark.parametrize("role", [METADATA, DATA])
@pytest.mark.parametrize("sign", SIGNS)
def test_a_disk_with_something_on_it_is_refused(sign: str, role: str, tmp_path: Path) -> None:
    used, empty = file_of(tmp_path / "used", SIZE), file_of(tmp_path / "empty", SIZE)
    SIGNS[sign](used)
    paths = (used, empty) if role == METADATA else (empty, used)
    before = digests(*paths)
    with attached(*paths) as names:
        backing = devices(*names)
        where = names[paths.index(used)]
        with backing.attached() as found, pytest.raises(Unavailable) as refused:
            backing.claim(found, OURS)
        assert str(refused.value).startswith(f"there is something on {where}")
        assert str(refused.value).endswith(": if it may be lost, say so by dm.directlvm_device_force=true")
        assert ("(ext4" in str(refused.value)) == (sign == "ext4")
        assert digests(*paths) == before
        backing = devices(*names, force=True)
        with backing.attached() as found:
            backing.claim(found, OURS)
            for disk in found:
                blank.check_blank(disk.path, disk.fd)


def test_a_blank_disk_is_taken_and_one_of_a_making_that_did_not_end(tmp_path: Path) -> None:
    paths = file_of(tmp_path / "metadata", 4 * MIB), file_of(tmp_path / "data", SIZE)
    with lower(*paths) as found:
        backing = devices("", "")
        backing.claim(found, OURS)
        for disk in found:
            label.write(disk.fd, disk.sectors, disk.role, OURS)
        backing.claim(found, OURS)
        with pytest.raises(Unavailable, match="there is something on"):
            backing.claim(found, THEIRS)
        with pytest.raises(Unavailable, match="there is something on"):
            backing.claim(Lower(found.data._replace(role=METADATA), found.metadata._replace(role=DATA)), OURS)


@pytest.mark.parametrize("force", [False, True])
def test_a_disk_that_is_in_use_is_refused_whatever_is_said(force: bool, tmp_path: Path) -> None:
    used, empty = file_of(tmp_path / "used", SIZE), file_of(tmp_path / "empty", SIZE)
    run("mkfs.ext4", "-q", "-F", used)
    with attached(empty, used) as (below, above), devices(below, above).attached() as found:
        with mounted([Mount("ext4", above)]) as place:
            with pytest.raises(Unavailable, match=f"{above} is in use: it is mounted at {place}"):
                devices(below, above, force=force).claim(found, OURS)
        holder = os.open(above, os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(Unavailable, match=f"{above} is in use: something has it"):
                devices(below, above, force=force).claim(found, OURS)
        finally:
            os.close(holder)
        with pytest.raises(Unavailable, match="are one device"):
            devices(below, below, force=force).claim(Lower(found.metadata, found.metadata), OURS)


def test_what_is_no_block_device(tmp_path: Path) -> None:
    paths = file_of(tmp_path / "metadata", 4 * MIB), file_of(tmp_path / "data", SIZE)
    with pytest.raises(Unavailable, match="metadata is not a block device"), devices(
        *map(str, paths)
    ).attached():
        pass
    with pytest.raises(Unavailable, match=r"/dev/nothing, which the layers are on, is missing"), devices(
        "/dev/nothing", "/dev/nothing"
    ).attached():
        pass


@pytest.mark.parametrize("how", ["a symbolic link", "a link to a device", "somebody's", "a directory"])
@pytest.mark.parametrize("name", ["data", "metadata"])
def test_a_file_of_ours_that_is_none(name: str, how: str, tmp_path: Path) -> None:
    files = Files(str(tmp_path), parse_settings({"dm.loopdatasize": "16M", "dm.loopmetadatasize": "4M"}))
    files.clear()
    path, aside = tmp_path / "thin-pool" / name, tmp_path / "aside"
    os.rename(path, aside)
    if how == "a symbolic link":
        path.symlink_to(aside)
    elif how == "a link to a device":
        path.symlink_to("/dev/loop0")
    elif how == "a directory":
        path.mkdir()
    else:
        path.write_bytes(b"theirs")
        os.chown(path, 12345, -1)
    with pytest.raises(Unavailable, match=r"put back the one that belongs here|belongs to the user 12345"):
        with files.attached():
            pass
    assert how != "somebody's" or path.read_bytes() == b"theirs"


# Whether they are the pool's.


class Pool:
    """The disks of a pool that is down, with a base whose first block is the data device's `base_at`th."""

    def __init__(self, place: Path, identity: bytes, *, transaction: int = 7, base_at: int = 3) -> None:
        place.mkdir()
        self.metadata, self.data = file_of(place / "metadata", 4 * MIB), file_of(place / "data", SIZE)
        base = file_of(place / "base", 16 * MIB)
        run("mkfs.ext4", "-q", "-F", base)
        found = superblock.parse(base.read_bytes()[:4096])
        assert found is not None
        self.base = records.ThinDevice(1, "base", None, 16 * MIB // 512, 0, 0, found.uuid.hex())
        with open(self.data, "r+b") as file:
            file.seek(base_at * BLOCK * 512)
            file.write(base.read_bytes()[: BLOCK * 512])
        self.restore(transaction, base_at)
        with lower(self.metadata, self.data) as disks:
            thinmeta.set_uuid(disks.metadata.fd, identity)
            label.write(disks.data.fd, disks.data.sectors, DATA, identity)

    def restore(self, transaction: int, base_at: int) -> None:
        """Metadata as thin_repair and thin_restore write them: without a uuid."""
        devices = "".join(
            f'<device dev_id="{number}" mapped_blocks="1" transaction="0" creation_time="0" snap_time="0">'
            f'<single_mapping origin_block="0" data_block="{base_at + number - 1}" time="0"/></device>'
            for number in range(1, 300)
        )
        dump = self.metadata.parent / "dump"
        blocks = SIZE // 512 // BLOCK + 400
        dump.write_text(
            f'<superblock uuid="" time="0" transaction="{transaction}" version="2" data_block_size="{BLOCK}" '
            f'nr_data_blocks="{blocks}">{devices}</superblock>'
        )
        run("thin_restore", "-q", "-i", dump, "-o", self.metadata)

    def expected(self, **changed: object) -> proof.Expected:
        wanted = proof.Expected("/root/metadata.db", OURS, frozenset({7}), BLOCK, SIZE // 512, self.base)
        return wanted._replace(**changed)  # type: ignore[arg-type]

    def check(self, metadata: Path | None = None, data: Path | None = None, **changed: object) -> None:
        with lower(metadata or self.metadata, data or self.data) as disks:
            proof.check(disks, self.expected(**changed), "repair it")


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    if subprocess.run(["which", "thin_restore"], capture_output=True).returncode:
        pytest.skip("thin_restore is not installed")
    return Pool(tmp_path / "pool", OURS)


def test_the_disks_of_last_time(pool: Pool) -> None:
    before = digests(pool.metadata, pool.data)
    pool.check()
    pool.check(transaction_ids=frozenset({6, 7}))  # of somebody who died between the pool's step and the store's
    assert digests(pool.metadata, pool.data) == before


EXCHANGED: dict[str, tuple[str, Callable[[Pool, Path], tuple[Path, Path]]]] = {
    "the two for each other": (
        "has no metadata of a thin pool; if they are damaged, repair it",
        lambda pool, place: (pool.data, pool.metadata),
    ),
    "metadata for another pool's": (
        "has the metadata of another thin pool", lambda pool, place: (Pool(place, THEIRS).metadata, pool.data),
    ),
    "metadata for an array's disk": (
        "has no metadata of a thin pool",
        lambda pool, place: (file_of(place, 8 * MIB, os.urandom(4 * MIB), 4096), pool.data),
    ),
    "metadata for a blank disk": (
        "has no metadata of a thin pool", lambda pool, place: (file_of(place, 4 * MIB), pool.data),
    ),
    "metadata for a strange pool's with the same numbers": (
        "does not have the metadata of what is on",
        lambda pool, place: (Pool(place, bytes(16), base_at=9).metadata, pool.data),
    ),
    "data for another pool's": (
        "does not have the label of this root", lambda pool, place: (pool.metadata, Pool(place, THEIRS).data),
    ),
    "data for a blank disk": (
        "does not have the label", lambda pool, place: (pool.metadata, file_of(place, SIZE)),
    ),
    "data for a smaller disk": (
        "is smaller than the 24M that it had", lambda pool, place: (pool.metadata, file_of(place, SIZE - MIB)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", EXCHANGED)
def test_disks_that_are_not_the_pools(what: str, pool: Pool, tmp_path: Path) -> None:
    says, exchange = EXCHANGED[what]
    paths = exchange(pool, tmp_path / "other")
    before = digests(*paths)
    with pytest.raises(Unavailable, match=says) as refused:
        pool.check(*paths)
    assert "nothing was changed" in str(refused.value) and "\n" not in str(refused.value)
    assert digests(*paths) == before


@pytest.mark.parametrize(("found", "known"), [(5, 7), (7, 5), (9, 8)])
def test_an_older_copy(found: int, known: int, tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool", OURS, transaction=found)
    with pytest.raises(Unavailable, match=f"is at transaction {found} and the store .* at {known}: one .* older copy"):
        pool.check(transaction_ids=frozenset({known}))


def test_a_smaller_metadata_device_and_other_blocks(pool: Pool) -> None:
    with pytest.raises(Unavailable, match="blocks of another size"):
        pool.check(block_sectors=256)
    os.truncate(pool.metadata, 3 * MIB)
    with pytest.raises(Unavailable, match="is smaller than it was"):
        pool.check()


def test_a_disk_that_has_grown(pool: Pool) -> None:
    os.truncate(pool.data, 2 * SIZE)
    os.truncate(pool.metadata, 8 * MIB)
    pool.check()


def test_metadata_that_were_repaired_are_known_by_what_they_lead_to(pool: Pool) -> None:
    pool.restore(7, 3)
    with pytest.raises(Unavailable, match="does not have the metadata of what is on"):
        pool.check(base=None)
    pool.check()
    with lower(pool.metadata, pool.data) as disks:
        found = thinmeta.read(disks.metadata.fd)
        assert found is not None and found.uuid == OURS
    run("thin_check", "-q", pool.metadata)
    pool.check(base=None)


def test_a_pool_of_an_older_version_has_neither(pool: Pool) -> None:
    """No uuid, no label: its base shows it, each time."""
    pool.restore(7, 3)
    pool.check(data_sectors=0)
    pool.check(data_sectors=0)
    with open(pool.data, "r+b") as file:
        file.seek(3 * BLOCK * 512)
        file.write(bytes(4096))
    with pytest.raises(Unavailable, match="does not have the metadata of what is on"):
        pool.check(data_sectors=0)


def test_blocks_are_found_in_a_tree_of_more_than_one_node(pool: Pool) -> None:
    """299 devices: the tree of them has two levels."""
    with lower(pool.metadata, pool.data) as disks:
        found = thinmeta.read(disks.metadata.fd)
        assert found is not None
        where = [thinmeta.find_block(disks.metadata.fd, found, number, 0) for number in (1, 2, 150, 299)]
        assert where == [3, 4, 152, 301]
        assert thinmeta.find_block(disks.metadata.fd, found, 300, 0) is None
        assert thinmeta.find_block(disks.metadata.fd, found, 0, 0) is None
        assert thinmeta.find_block(disks.metadata.fd, found, 1, 1) is None


def test_a_damaged_tree_leads_nowhere(pool: Pool) -> None:
    with lower(pool.metadata, pool.data) as disks:
        found = thinmeta.read(disks.metadata.fd)
        assert found is not None
        at = found.mapping_root * 4096
        node = direct.read(disks.metadata.fd, at, 4096)
        itself, beyond = (struct.pack("<Q", number) * 200 for number in (found.mapping_root, 1 << 40))
        most = struct.unpack_from("<I", node, 20)[0]
        values = 32 + most * 8
        for bad in (b"\xff" * 4096, bytes(4096), node[:values] + itself, node[:values] + beyond):
            direct.write(disks.metadata.fd, at, bad[:4096].ljust(4096, b"\0"))
            assert thinmeta.find_block(disks.metadata.fd, found, 1, 0) is None


def test_a_label_is_in_the_last_block(tmp_path: Path) -> None:
    path = file_of(tmp_path / "disk", MIB + 3 * 512)
    with attached(path) as (device,):
        fd = os.open(device, os.O_RDWR | direct.FLAGS)
        disk = Disk(DATA, device, fd, "")
        label.write(fd, disk.sectors, DATA, OURS)
        assert label.usable(disk.sectors) * 512 == MIB - 4096
        assert label.is_there(fd, disk.sectors, DATA, OURS)
        for role, identity in ((METADATA, OURS), (DATA, THEIRS)):
            assert not label.is_there(fd, disk.sectors, role, identity)
        os.close(fd)
