"""Trees in use and trees of many layers: what programs hold on to while a file is copied up."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from drivers.api import Snapshotter
from tests import trees
from tests.contracts.snapshotter.words import Words
from tests.mounting import mounted
from tests.trees import Special


class Stability(Words):
    def test_unix_domain_sockets(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"run": {"stale": Special(type=stat.S_IFSOCK)}})
        with mounted(driver.prepare("key", "one")) as path:
            for name in ("new", "stale"):
                address = f"{path}/run/{name}"
                with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
                    if name == "stale":
                        with pytest.raises(ConnectionRefusedError):
                            client.connect(address)
                        os.unlink(address)
                    server.bind(address)
                    server.listen()
                    client.connect(address)
                    peer, _ = server.accept()
                    with peer:
                        client.sendall(b"hello")
                        assert peer.recv(5) == b"hello"

    def test_directory_inodes_are_stable(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"dir": {"sub": {"f": "1"}}})
        with mounted(driver.prepare("key", "one")) as path:
            names = ("", "dir", "dir/sub")
            before = [os.stat(f"{path}/{name}").st_ino for name in names]
            trees.build(f"{path}/dir/sub", {"new": ""})
            os.chmod(f"{path}/dir", 0o700)
            assert [os.stat(f"{path}/{name}").st_ino for name in names] == before

    def test_inodes_of_open_files_are_stable(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"f": "lower"})
        with mounted(driver.prepare("key", "one")) as path:
            with open(f"{path}/f") as reader:
                before = os.fstat(reader.fileno())
                with open(f"{path}/f", "a") as writer:
                    assert os.fstat(writer.fileno()).st_ino == before.st_ino
                    writer.write(" and upper")
                after = os.stat(f"{path}/f")
                assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
            assert Path(path, "f").read_text() == "lower and upper"

    def test_the_working_directory_keeps_its_name(self, driver: Snapshotter) -> None:
        self.layer(driver, "one", {"dir": {"sub": {}}})
        script = (
            "import os; os.chdir('dir/sub'); open('new', 'w').close(); os.chmod('.', 0o700);"
            "os.rename('../sub/new', '../newer'); print(os.getcwd()); os.chdir('..'); print(os.getcwd())"
        )
        with mounted(driver.prepare("key", "one")) as path:
            command = [sys.executable, "-c", script]
            result = subprocess.run(command, cwd=path, capture_output=True, text=True, check=True)
            assert result.stdout.split() == [f"{path}/dir/sub", f"{path}/dir"]

    def test_a_growing_tree_equals_a_plain_directory(self, driver: Snapshotter, tmp_path: Path) -> None:
        """The same random changes in every layer and in one plain directory; each layer is compared as it was."""
        reference = tmp_path / "reference"
        reference.mkdir(mode=0o755)
        parent, states = "", {}
        for number in range(self.compared_layers):
            name = f"layer-{number}"
            with self.writing(driver, name, parent) as path:
                for place in (path, str(reference)):
                    change_at_random(place, random.Random(number))
            states[name] = trees.read(str(reference), times=False)
            parent = name
        for name, state in states.items():
            with self.looking(driver, name) as path:
                trees.assert_same(state, trees.read(path, times=False), f"in {name}")

    def test_a_deep_tree_is_read(self, driver: Snapshotter) -> None:
        """As many layers as images have: each is found, and so is what only the lowest has."""
        parent = ""
        for number in range(self.depth):
            name = f"layer-{number}"
            with self.plain_writing(driver, name, parent) as path:
                if number == 0:
                    trees.build(path, {"base": "base", "shared": {}})
                trees.build(path, {f"in-{number}": {"number": str(number), "parent": parent}})
                trees.build(f"{path}/shared", {f"from-{number}": ""})
                Path(path, "top").write_text(str(number))
            parent = name
        with self.looking(driver, parent) as path:
            assert Path(path, "base").read_text() == "base"
            assert Path(path, "top").read_text() == str(self.depth - 1)
            assert set(os.listdir(f"{path}/shared")) == {f"from-{n}" for n in range(self.depth)}
            assert len(os.listdir(path)) == self.depth + 3
            for number in range(self.depth):
                assert Path(path, f"in-{number}", "number").read_text() == str(number)
        with mounted(driver.prepare("key", parent)) as path:
            with open(f"{path}/in-0/number", "a") as lowest:
                lowest.write("!")
            assert Path(path, "in-0", "number").read_text() == "0!"


def change_at_random(root: str, chance: random.Random) -> None:
    """A few dozen changes that any file system can do; the same for the same state of `chance` and of the tree."""
    for number in range(25):
        everything = sorted(
            os.path.relpath(os.path.join(directory, name), root)
            for directory, directories, files in os.walk(root)
            for name in directories + files
        )
        directories = [".", *(e for e in everything if stat.S_ISDIR(os.lstat(f"{root}/{e}").st_mode))]
        victim = f"{root}/{chance.choice(everything)}" if everything else None
        new = f"{root}/{chance.choice(directories)}/n{chance.randrange(10**6)}-{number}"
        match chance.choice(["file", "file", "directory", "link", "write", "chmod", "delete", "replace", "move"]):
            case "file":
                Path(new).write_bytes(chance.randbytes(chance.randrange(20_000)))
            case "directory":
                os.mkdir(new)
            case "link":
                os.symlink(f"to-{number}", new)
            case "write" if victim and os.path.isfile(victim):
                with open(victim, "r+b") as out:
                    out.seek(chance.randrange(30_000))
                    out.write(b"changed")
            case "chmod" if victim and not os.path.islink(victim):
                os.chmod(victim, chance.choice([0o700, 0o755, 0o1777]))
            case "delete" if victim:
                _delete(victim)
            case "replace" if victim:
                _delete(victim)
                os.mkdir(victim)
            case "move" if victim and not os.path.isdir(victim):
                os.rename(victim, new)


def _delete(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
