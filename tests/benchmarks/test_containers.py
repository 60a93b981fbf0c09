"""The question of many containers, small: what it measures, and what must come out of it."""

from __future__ import annotations

import os

from benchmarks import containers
from benchmarks.subjects import Driver


def test_many_containers_of_one_image(driver: Driver) -> None:
    found: dict[str, list[float]] = {}
    for sample in containers.run([driver], 1, quick=True):
        assert (sample.question, sample.subject) == ("containers", driver.name)
        found.setdefault(sample.measure, []).append(sample.value)
    assert set(found) == {
        "image", "new container", "first change", "disk, each", "memory, 4 read", "memory, 4 run", "remove",
    }  # fmt: skip
    assert all(values[0] > 0 for measure, values in found.items() if measure != "disk, each")
    # A directory of differences, or blocks: one small file was changed. A copy: all of the image was.
    image = 2 * containers.LARGE * containers.LARGE_SIZE + containers.SMALL * containers.SMALL_SIZE
    if driver.name == "vfs":
        assert found["disk, each"][0] > image * 0.9
    else:
        assert found["disk, each"][0] < image * 0.2
    # These two have one page cache for all containers, of programs at least; a copy has its own for each.
    if driver.name in ("overlay2", "fuse-aufs"):
        assert found["memory, 4 run"][0] < 1.5
    if driver.name == "overlay2":
        assert found["memory, 4 read"][0] < 1.5
    if driver.name == "vfs":
        assert found["memory, 4 run"][0] > 2.5
    assert os.listdir(driver.work) == []


def test_no_question_for_others() -> None:
    assert list(containers.run([], 1, quick=True)) == []
