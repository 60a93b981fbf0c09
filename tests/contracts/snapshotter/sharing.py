"""Several processes and threads on one root."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path

from drivers.api import Snapshotter
from drivers.errors import AlreadyExists
from tests import trees
from tests.children import in_child
from tests.contracts.snapshotter.words import Words
from tests.mounting import mounted


class Sharing(Words):
    def test_one_of_many_processes_commits(self, driver: Snapshotter, root: str) -> None:
        def unpack(number: int) -> None:
            mine = self.open(root)
            mounts = mine.prepare(f"key-{number}")
            with mounted(mounts) as path:
                trees.build(path, {"who": str(number)})
            try:
                mine.commit("name", f"key-{number}")
            except AlreadyExists:
                mine.remove(f"key-{number}")
            mine.close()

        children = [in_child(partial(unpack, number)) for number in range(self.racers)]
        assert [child.wait() for child in children] == [0] * self.racers
        assert self.names(driver) == {"name"}
        with self.looking(driver, "name") as path:
            assert int(Path(path, "who").read_text()) in range(self.racers)

    def test_cleanup_leaves_the_work_of_others_alone(self, driver: Snapshotter, root: str) -> None:
        self.layer(driver, "base", {f"f{n}": "x" for n in range(50)})

        def work(number: int) -> None:
            mine = self.open(root)
            for turn in range(self.turns):
                mine.prepare(f"key-{number}-{turn}", "base")
                if turn % 4 == 1:
                    with mounted(mine.mounts(f"key-{number}-{turn}")) as path:
                        assert len(os.listdir(path)) == 50
                if turn % 2:
                    mine.commit(f"name-{number}-{turn}", f"key-{number}-{turn}")
                else:
                    mine.remove(f"key-{number}-{turn}")
            mine.close()

        children = [in_child(partial(work, number)) for number in range(3)]
        while any(child.is_running() for child in children):
            driver.cleanup()
        assert [child.wait() for child in children] == [0] * 3
        assert self.names(driver) == {"base", *(f"name-{n}-{t}" for n in range(3) for t in range(1, self.turns, 2))}

    def test_threads_share_a_driver(self, driver: Snapshotter) -> None:
        self.layer(driver, "base", {"f": "x"})
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(self.turns // 2):
                    driver.prepare(f"key-{number}-{turn}", "base")
                    driver.stat(f"key-{number}-{turn}")
                    list(driver.walk())
                    driver.commit(f"name-{number}-{turn}", f"key-{number}-{turn}")
                    driver.cleanup()
                    driver.remove(f"name-{number}-{turn}")
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(self.racers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert self.names(driver) == {"base"}
