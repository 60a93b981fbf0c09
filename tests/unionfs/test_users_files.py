"""A user's own union, whose server may read and write what the user may and no more: his files that he may not write
to, and directories that he may not list, are for him what they are on a plain directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.contracts.posix.acl import ACCESS, HANDED_DOWN
from tests.mounting import TRANSPORTS
from tests.trees import Dir, Entry, File, build
from tests.unionfs.command import AS_NOBODY, UNIONFS, bare_dev

pytestmark = pytest.mark.needs("fuse", "user-xattr", "program:unshare", "program:setpriv", "program:fusermount3")

NOBODY = 65534
WITH_FUSE = bare_dev("mknod -m 666 /dev/fuse c 10 229 && ")

TREE: Mapping[str, Entry] = {
    "ro": File("read only", mode=0o444, xattrs={"user.kept": b"kept"}, mtime_ns=10**18),
    "acl": File("by acl", mode=0o440, xattrs={ACCESS: HANDED_DOWN, "user.kept": b"kept"}),
    "f": "file",
    "d": Dir({"f": "file", "sub": {"g": "file"}}),
    "d555": Dir({"f": "file", "sub": Dir({"g": "file"}, mode=0o500)}, mode=0o555),
    "d311": Dir({"f": "file"}, mode=0o311), "empty": Dir({}, mode=0o555),
}
# What the user may not read himself. He may permit it, unless it is in a lower branch, where nothing is changed.
CLOSED: Mapping[str, Entry] = {"none": File("none", mode=0), "d000": Dir({"f": "file"}, mode=0)}  # fmt: skip

# Each in a directory of its own that has TREE in it.
COMMANDS = {
    "rename": "mv ro x",
    "rename with an ACL": "mv acl x",
    "link": "ln ro x && ls -l",
    "touch": "touch -c ro",
    "date": "touch -c -d @1000 ro && stat -c %Y ro",
    "permit and write": "chmod u+w ro && echo more >>ro",
    "write is refused": "echo more >>ro",
    "copy": "cp -a ro x && stat -c %Y ro x",
    "replace": "echo new >new && mv -f new ro",
    "close": "chmod 000 f && ls -l . && stat -c %h f && cat f",
    "close a copy": "n=$(stat -c %i f); echo more >>f; chmod 000 f; ls -i . | grep \"^ *$n f$\" | wc -l",
    "close and open": "chmod 000 f && ls . && chmod 640 f && cat f",
    "close what is new": "echo n >new && chmod 000 new && ls . && mv new x && ln x y && ls . && rm y && chmod 600 x",
    "close and unlink": "chmod 000 f && ls . && rm -f f && ls .",
    "a closed directory": "chmod 000 d && ls . && ls d",
    "a closed directory opened": "chmod 000 d && ls . && chmod 700 d && ls d && cat d/f",
    "a directory that is not listed": "cat d311/f && echo more >>d311/f && echo new >d311/new && cat d311/f d311/new"
    " && rm d311/f && ! cat d311/f",
    "write below": "echo more >>d555/f && chmod 600 d555/sub/g && echo more >>d555/sub/g",
    "unlink below is refused": "rm -f d555/f",
    "create below is refused": "echo new >d555/new",
    "rename a directory": "mv d555 x && ls -R x && ls .",
    "remove a tree": "chmod -R u+w d555 && rm -r d555 && mkdir d555 && ls d555",
    "make it again": "rm -r d && mkdir -m 555 d && ls d && chmod 755 d && ls d && echo new >d/new",
    "make it again, closed": "rm -r d && mkdir -m 000 d && ls . && chmod 755 d && ls d",
    "replace a tree": "rm -r d && mkdir d && touch d/new && chmod 000 d && ls . && chmod 755 d && ls d",
    "remove an empty one": "rmdir empty && mkdir empty && ls empty",
    "remove one emptied": "rm -rf d/* && chmod 555 d && rmdir d && mkdir d && ls d",
    "replace an empty one": "mkdir new && touch new/x && mv -T new empty && ls empty",
    "install": "install -m 444 ro x && install -d -m 555 y && ls .",
    "make read-only": "(umask 0222; echo new >new; mkdir made) && mv new x && mv made m && ls .",
}  # fmt: skip

RUN = """
import json, subprocess, sys
top, commands = sys.argv[1], json.loads(sys.argv[2])
def said(*words, **more):
    done = subprocess.run(words, capture_output=True, text=True, **more)
    return [done.returncode, done.stdout]
def run(name, command):
    at = f"{top}/{name}"
    answer = said("sh", "-c", command, cwd=at)
    modes = said("find", ".", "-printf", "%p %y %m %l\\\\n", cwd=at)
    said("sh", "-c", "for name in *; do test $name = d311 || chmod -R u+rX $name; done", cwd=at)
    inside = said("sh", "-c", "find . -type f | LC_ALL=C sort | while read f; do echo $f; cat $f; done", cwd=at)
    return [answer, sorted(modes[1].splitlines()), inside[1].splitlines()]
print(json.dumps({name: run(name, command) for name, command in commands.items()}))
"""


# Of CLOSED in the lower branch: an error, and the rest is not touched by it.
REFUSED = ("cat none", "mv none x", "ln none x", "chmod u+r none", "ls d000", "mv d000 x")
ALLOWED = ("ls -l .", "stat none d000", "chmod 700 d000 && ! ls d000", "rm -f none && echo new >none && cat none")


def give(top: Path) -> None:
    for directory, _, names in os.walk(top):
        for name in (".", *names):
            os.lchown(os.path.join(directory, name), NOBODY, NOBODY)


def as_user(home: Path, script: str, *arguments: str) -> str:
    """What `script` prints: sh's, as a user who has a /dev/fuse, in `home`; "$unionfs" is the command."""
    prefix = [*WITH_FUSE, *AS_NOBODY, "env", f"XDG_RUNTIME_DIR={home}/run", "LC_ALL=C", f"unionfs={' '.join(UNIONFS)}"]
    done = subprocess.run([*prefix, "sh", "-c", f"set -e; {script}", "sh", *arguments],
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_as_on_a_plain_directory(nobodys: Path, transport: str, where: str) -> None:
    os.mkdir("run")
    for name in ("plain", "up" if where == "upper" else "low"):
        build(str(nobodys / name), {command: Dir(TREE) for command in COMMANDS})
        give(nobodys / name)
    give(nobodys / "run")
    script = (
        f'$unionfs mount -o transport={transport} low:up mnt; "$1" -c "$2" plain "$3"; "$1" -c "$2" mnt "$3";'
        " $unionfs umount mnt"
    )
    said = as_user(nobodys, script, sys.executable, RUN, json.dumps(COMMANDS))
    plain, union = map(json.loads, said.splitlines())
    differing = [f"{name}\n  plain {plain[name]}\n  union {union[name]}" for name in COMMANDS
                 if plain[name] != union[name]]  # fmt: skip
    assert not differing, "\n".join([f"{len(differing)} of {len(COMMANDS)} differ", *differing])
    left = [str(path) for path in nobodys.glob("up/.wh..wh.orph")]
    assert not left


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_the_server_may_not_read(nobodys: Path, transport: str) -> None:
    os.mkdir("run")
    for name in ("low", "up"):
        build(str(nobodys / name), {name: Dir({**CLOSED, "f": "file"})})
        give(nobodys / name)
    give(nobodys / "run")
    script = [f"$unionfs mount -o transport={transport} low:up mnt", "cd mnt/low", "ls -R . >/dev/null || true"]
    script += [f"! {command} 2>&1 || exit 1" for command in REFUSED]
    script += [f"{command} >/dev/null" for command in ALLOWED]
    script += ["cd ../up", "chmod u+r none", "cat none", "chmod 700 d000", "cat d000/f", "cd ../.."]
    script += ["$unionfs umount mnt"]
    said = as_user(nobodys, "; ".join(script)).splitlines()
    assert [line.split(": ")[-1] for line in said[: len(REFUSED)]] == ["Permission denied"] * len(REFUSED)
    assert said[len(REFUSED) :] == ["nonefile"]
    assert sorted(os.listdir("up")) == [".wh..wh.aufs", "low", "up"]
    assert sorted(os.listdir("up/low")) == ["d000", "none"]
