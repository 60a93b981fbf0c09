"""What of a configuration is accepted, and the sentence for what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from runtime.errors import ConfigError
from runtime.oci import caps, defaults, spec

Config = dict[str, Any]
Make = Callable[..., Config]


def test_the_default_configuration(config: Make) -> None:
    parsed = spec.parse(config("sh", "-c", "true"))
    assert parsed.process.args == ("sh", "-c", "true")
    assert parsed.namespaces == dict.fromkeys(defaults.NAMESPACES)
    assert parsed.process.capabilities == (caps.mask(defaults.CAPABILITIES),) * 3 + (0, 0)
    assert parsed.process.umask == 0o022
    assert parsed.propagation == "private"
    assert parsed.mounts[1] == ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k"))
    assert parsed.resources.devices[0] == (False, "a", None, None, "rwm")


def test_paths_are_normalised(config: Make) -> None:
    parsed = spec.parse(config("x", process__cwd="//a/../b/./c/", linux__cgroupsPath="one//two"))
    assert parsed.process.cwd == "/b/c"
    assert parsed.cgroups_path == "/one/two"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"root": None}, "root.path: a path is needed"),
        ({"root__path": "relative"}, "root.path: 'relative' is not an absolute path"),
        ({"root": "x"}, "root: expected an object, not 'x'"),
        ({"process__args": []}, "process.args: a command is needed"),
        ({"process__args": ["a\0b"]}, "process.args: 'a\\x00b' is not a string that a process can be given"),
        ({"process__args": "true"}, "process.args: expected a list, not 'true'"),
        ({"process__env": ["A"]}, "process.env: 'A' is not NAME=VALUE"),
        ({"process__env": ["=x"]}, "process.env: '=x' is not NAME=VALUE"),
        ({"process__cwd": "there"}, "process.cwd: 'there' is not an absolute path"),
        ({"process__user": {"uid": -1}}, "process.user.uid: -1 is not between 0 and 4294967294"),
        ({"process__user": {"uid": "0"}}, "process.user.uid: expected a whole number, not '0'"),
        ({"process__user": {"uid": True}}, "process.user.uid: expected a whole number, not True"),
        ({"process__user": {"additionalGids": ["x"]}}, "process.user.additionalGids: 'x' is not a group id"),
        ({"process__user": {"umask": 0o1000}}, "process.user.umask: 512 is not between 0 and 511"),
        (
            {"process__capabilities": {"bounding": ["CAP_FLY"]}},
            "process.capabilities.bounding: 'CAP_FLY' is not a capability",
        ),
        (
            {"process__rlimits": [{"type": "NOFILE", "soft": 1, "hard": 1}]},
            "process.rlimits[0].type: 'NOFILE' is not the name of a limit such as RLIMIT_NOFILE",
        ),
        (
            {"process__rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]},
            "process.rlimits[0].soft: RLIMIT_NOFILE: the soft limit 2 is above the hard limit 1",
        ),
        ({"process__oomScoreAdj": 1001}, "process.oomScoreAdj: 1001 is not between -1000 and 1000"),
        ({"linux__namespaces": []}, "linux.namespaces: a new mount namespace is needed"),
        (
            {"linux__namespaces": [{"type": "mount", "path": "/proc/1/ns/mnt"}]},
            "linux.namespaces: a new mount namespace is needed",
        ),
        (
            {"linux__namespaces": [{"type": "user"}]},
            "linux.namespaces[0].type: 'user' is not one of mount, pid, network, uts, ipc, cgroup",
        ),
        (
            {"linux__namespaces": [{"type": "mount"}, {"type": "mount"}]},
            "linux.namespaces[1].type: mount is there twice",
        ),
        (
            {"linux__namespaces": [{"type": "mount"}], "mounts": []},
            "hostname: it would be the host's, because linux.namespaces has no uts",
        ),
        (
            {"linux__namespaces": [{"type": "mount"}, {"type": "uts"}]},
            "mounts: a mount of type cgroup needs a cgroup namespace",
        ),
        ({"mounts": [{"destination": "x", "type": "tmpfs"}]}, "mounts[0].destination: 'x' is not an absolute path"),
        ({"mounts": [{"destination": "/", "type": "tmpfs"}]}, "mounts[0].destination: / is root.path's"),
        (
            {"mounts": [{"destination": "/x", "source": "/y"}]},
            "mounts[0].options: a mount without a file system type needs bind or rbind",
        ),
        (
            {"mounts": [{"destination": "/x", "source": "y", "options": ["bind"]}]},
            "mounts[0].source: 'y' is not an absolute path",
        ),
        (
            {"mounts": [{"destination": "/proc/x", "type": "tmpfs"}]},
            "mounts[0].destination: /proc/x is inside /proc, where only proc itself may be mounted",
        ),
        (
            {"linux__seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}},
            "linux.seccomp: this runtime does not honour it, and will not run a container as if it did",
        ),
        (
            {"process__apparmorProfile": "strict"},
            "process.apparmorProfile: this runtime does not honour it, and will not run a container as if it did",
        ),
        (
            {"hooks": {"prestart": [{"path": "/x"}]}},
            "hooks: this runtime does not honour it, and will not run a container as if it did",
        ),
        (
            {"linux__resources": {"blockIO": {"weight": 10}}},
            "linux.resources.blockIO: this runtime does not honour it, and will not run a container as if it did",
        ),
        (
            {"linux__resources": {"pids": {"limit": "9"}}},
            "linux.resources.pids.limit: expected a whole number, not '9'",
        ),
        (
            {"linux__resources": {"cpu": {"quota": 10}}},
            "linux.resources.cpu.quota: 10 microseconds are less than the kernel's least, 1000",
        ),
        (
            {"linux__resources": {"devices": [{"allow": True, "access": "x"}]}},
            "linux.resources.devices[0].access: 'x' is not made of r, w and m",
        ),
        ({"linux__cgroupsPath": "/../x"}, "linux.cgroupsPath: '/../x' is not the path of a cgroup"),
        ({"linux__cgroupsPath": "/"}, "linux.cgroupsPath: '/' is not the path of a cgroup"),
        (
            {"linux__cgroupsPath": None, "linux__resources": {"pids": {"limit": 9}}},
            "linux.resources: limits need linux.cgroupsPath",
        ),
        (
            {"linux__sysctl": {"kernel.panic": "1"}},
            "linux.sysctl: kernel.panic is not one that belongs to a namespace",
        ),
        (
            {"linux__sysctl": {"net.../../kernel/panic": "1"}},
            "linux.sysctl: net.../../kernel/panic is not one that belongs to a namespace",
        ),
        (
            {"linux__rootfsPropagation": "shared"},
            "linux.rootfsPropagation: 'shared' is not private or slave, as rprivate and rslave",
        ),
        ({"linux__maskedPaths": ["proc"]}, "linux.maskedPaths, linux.readonlyPaths: 'proc' is not an absolute path"),
        ({"linux__devices": [{"path": "/dev/x", "type": "z"}]}, "linux.devices[0].type: 'z' is not c, b or p"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_begins_with_the_place(
    config: Make, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        spec.parse(config("true", **changes))
    assert str(refusal.value) == sentence


def test_a_sysctl_needs_its_namespace(config: Make) -> None:
    spaces = [{"type": kind} for kind in defaults.NAMESPACES if kind != "network"]
    with pytest.raises(ConfigError, match=r"net\.core\.somaxconn would be the host's"):
        spec.parse(config("x", linux__namespaces=spaces, linux__sysctl={"net.core.somaxconn": "1"}))


def test_empty_and_informative_keys_are_no_matter(config: Make) -> None:
    given = config("x", annotations={"a": "b"}, hooks={}, linux__seccomp=None, linux__uidMappings=[])
    assert spec.parse(given) == spec.parse(config("x", linux__cgroupsPath=given["linux"]["cgroupsPath"]))


def test_the_cgroup_of_any_configuration() -> None:
    assert spec.cgroups_path({}) is None
    assert spec.cgroups_path({"linux": {"cgroupsPath": "/a/b", "seccomp": {"x": 1}}}) == "/a/b"
