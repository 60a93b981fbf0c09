"""Who may import whom (ARCHITECTURE.md), read from the source; and what must not be imported at run time."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGES = ("unionfs", "drivers", "runtime", "benchmarks")

# A part of the project -> the parts that it imports, besides itself, and no other may it. The longest prefix names a
# module's part, so "drivers" is what its folders and single drivers have not.
_UNIONFS = {
    "unionfs.linux": set[str](),
    "unionfs.fuse": set[str](),
    "unionfs.options": set[str](),
    "unionfs.union.form": set[str](),  # the vocabulary of branches on disk, for whoever reads or writes one
    "unionfs.union.opaque": {"unionfs.linux", "unionfs.union.form"},
    "unionfs.union": {"unionfs.linux", "unionfs.union.form", "unionfs.union.opaque"},
    "unionfs.serve": {"unionfs.linux", "unionfs.union", "unionfs.fuse"},
    "unionfs.transport": {"unionfs.linux", "unionfs.union", "unionfs.fuse", "unionfs.serve", "unionfs.options"},
    "unionfs.cli": {"unionfs.transport", "unionfs.options"},
    "unionfs.__main__": {"unionfs.cli"},
    "unionfs": set[str](),
}
_ROOMS = {"unionfs.linux", "drivers", "drivers.disk", "drivers.graph"}  # what every driver stands on
_DRIVERS = {
    "drivers": set[str](),  # the interface: api, errors
    "drivers.disk": {"unionfs.linux", "drivers"},
    "drivers.graph": {"drivers", "drivers.disk"},
    "drivers.mounts": {"unionfs", "unionfs.linux", "unionfs.options", "unionfs.transport", "drivers", "drivers.disk"},
    "drivers.fuse_aufs": {
        "drivers", "drivers.disk", "drivers.graph", "drivers.mounts", "unionfs.union.form",
        "unionfs.transport",  # what `probe` asks
    },
    "drivers.overlay2": {*_ROOMS, "drivers.mounts"},
    "drivers.vfs": _ROOMS,
    "drivers.btrfs": _ROOMS,
    "drivers.zfs": _ROOMS,
    "drivers.devicemapper": _ROOMS,
    "drivers.catalog": _ROOMS,  # and each driver by its name, when it is asked for
    "drivers.archive": {
        "unionfs.linux", "unionfs.union.form", "drivers", "drivers.disk", "drivers.mounts",
        "unionfs.union.opaque",  # marks
    },
    "drivers.diff": {
        "unionfs.linux", "unionfs.union.form", "drivers", "drivers.disk", "drivers.mounts", "drivers.archive",
    },
}  # fmt: skip
_RUNTIME = {
    # From the bottom up. A container as OCI has it, and images, know nothing of an engine.
    "runtime": set[str](),
    "runtime.errors": set[str](),
    "runtime.events": set[str](),
    "runtime.oci": {"unionfs.linux", "runtime.errors"},
    "runtime.images": {"unionfs.linux", "drivers", "drivers.disk", "drivers.archive", "drivers.diff", "runtime.errors"},
    "runtime.registry": {"drivers", "drivers.disk", "runtime.errors", "runtime.events", "runtime.images"},
    # The engine: records; what there is of containers; the installation that owns it all.
    "runtime.engine.paths": {"drivers.disk"},
    "runtime.engine.records": {"drivers.disk", "runtime.errors"},
    "runtime.engine.state": {"runtime.errors", "runtime.engine.records"},
    "runtime.engine.containers.etc": {"unionfs.linux"},
    "runtime.engine.containers.logs": set[str](),
    "runtime.engine.containers.leaving": {"runtime.errors"},
    "runtime.engine.containers.accounts": {"unionfs.linux", "runtime.errors"},
    "runtime.engine.containers.names": {"runtime.errors"},
    "runtime.engine.containers.request": {"runtime.errors", "runtime.engine.containers.names"},
    "runtime.engine.containers.spec": {
        "runtime.errors", "runtime.oci", "runtime.engine.containers.etc", "runtime.engine.containers.request",
    },
    "runtime.engine.containers.container": {
        "drivers", "drivers.disk",
        "runtime.errors", "runtime.engine.paths", "runtime.engine.records", "runtime.engine.state",
    },
    "runtime.engine.containers.store": {
        "drivers", "drivers.disk",
        "runtime.errors", "runtime.engine.paths", "runtime.engine.records", "runtime.engine.state",
        "runtime.engine.containers.names", "runtime.engine.containers.container",
    },
    "runtime.engine.networks": {"unionfs.linux", "drivers", "drivers.disk", "runtime.errors"},
    "runtime.engine.storage.drivers": {"drivers", "drivers.catalog", "runtime.engine.paths"},
    "runtime.engine.installation": {
        "runtime.images", "runtime.engine.paths", "runtime.engine.containers.store", "runtime.engine.networks",
        "runtime.engine.storage.drivers",
    },
    # The line to a container's task; then the task itself, and the rooms of verbs.
    "runtime.engine": {
        "unionfs.linux",
        "drivers",
        "runtime.errors", "runtime.oci", "runtime.engine.containers.container",
    },
    "runtime.engine.containers.release": {
        "drivers",
        "runtime.errors", "runtime.oci", "runtime.engine.containers.container",
        "runtime.engine.storage.drivers", "runtime.engine.installation",
    },
    "runtime.engine.task": {
        "unionfs.linux",
        "drivers", "drivers.mounts",
        "runtime.errors", "runtime.oci", "runtime.engine.paths", "runtime.engine.state",
        "runtime.engine.containers.etc", "runtime.engine.containers.logs", "runtime.engine.containers.accounts",
        "runtime.engine.containers.container", "runtime.engine.networks", "runtime.engine.installation",
        "runtime.engine", "runtime.engine.containers.release", "runtime.engine.containers",
    },
    "runtime.engine.storage": {
        "drivers",
        "runtime.errors", "runtime.images", "runtime.engine.state", "runtime.engine.containers.container",
        "runtime.engine.storage.drivers", "runtime.engine.installation", "runtime.engine.containers.release",
    },
    "runtime.engine.images": {
        "drivers",
        "runtime.errors", "runtime.events", "runtime.images", "runtime.registry",
        "runtime.engine.containers.names", "runtime.engine.storage.drivers", "runtime.engine.installation",
        "runtime.engine.storage",
    },
    "runtime.engine.containers": {
        "unionfs.linux",
        "drivers", "drivers.archive", "drivers.diff",
        "runtime.errors", "runtime.events", "runtime.oci", "runtime.images", "runtime.registry",
        "runtime.engine.state", "runtime.engine.containers.leaving", "runtime.engine.containers.accounts",
        "runtime.engine.containers.names", "runtime.engine.containers.request",
        "runtime.engine.containers.spec", "runtime.engine.containers.container",
        "runtime.engine.storage.drivers", "runtime.engine.installation", "runtime.engine",
        "runtime.engine.containers.release", "runtime.engine.storage",
    },
    "runtime.engine.facts": {
        "drivers.disk", "drivers.catalog",
        "runtime.errors", "runtime.oci", "runtime.engine.state", "runtime.engine.installation",
    },
    # Its faces.
    "runtime.client": {
        "unionfs.linux",
        "runtime.errors", "runtime.engine.containers.container", "runtime.engine", "runtime.engine.containers",
    },
    "runtime.cli": {
        "unionfs.linux",
        "drivers", "drivers.disk", "drivers.archive",
        "runtime.errors", "runtime.events", "runtime.images", "runtime.registry", "runtime.engine.paths",
        "runtime.engine.state", "runtime.engine.containers.logs", "runtime.engine.containers.names",
        "runtime.engine.containers.request", "runtime.engine.containers.container",
        "runtime.engine.storage.drivers", "runtime.engine.installation", "runtime.engine",
        "runtime.engine.storage", "runtime.engine.images", "runtime.engine.containers", "runtime.engine.facts",
        "runtime.client",
    },
    "runtime.__main__": {"runtime.cli"},
}  # fmt: skip
ARROWS: dict[str, set[str]] = {
    **_UNIONFS, **_DRIVERS, **_RUNTIME, "benchmarks": {*_UNIONFS, *_DRIVERS, *_RUNTIME},
}  # fmt: skip
SERVING = ("pyfuse3", "trio")
THIRD_PARTY = {"pyfuse3", "trio"}
# Commands, and how many modules each may import, with those that every interpreter has.
IMPORTS = {
    "runtime --help": 165, "runtime version": 160, "runtime ps -a": 132, "runtime images": 136, "runtime info": 232,
    "runtime run": 82, "runtime exec": 82, "unionfs --help": 94, "unionfs info /nonexistent": 119,
}  # fmt: skip


def modules() -> Iterator[tuple[str, str]]:
    """(dotted name, path) of every module of the project's packages."""
    for package in PACKAGES:
        for directory, _, files in os.walk(os.path.join(ROOT, package)):
            for name in files:
                if name.endswith(".py"):
                    path = os.path.join(directory, name)
                    dotted = os.path.relpath(path, ROOT).removesuffix(".py").replace(os.sep, ".")
                    yield dotted.removesuffix(".__init__"), path


MODULES = dict(sorted(modules()))


def imported(module: str, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import anywhere in the file; `from package import module` names the module."""
    with open(path, encoding="utf-8") as source:
        tree = ast.parse(source.read(), path)
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                yield node.lineno, deeper if deeper in MODULES else base


def part(module: str) -> str:
    """The longest key of ARROWS that `module` lies in."""
    inside = [key for key in ARROWS if module == key or module.startswith(key + ".")]
    return max(inside, key=len)


def allowed(importer: str, target: str) -> bool:
    return part(target) in {part(importer), *ARROWS[part(importer)]}


def wrong_arrows(module: str, path: str) -> list[str]:
    return [
        f"{os.path.relpath(path, ROOT)}:{line}: {module} must not import {target}"
        for line, target in imported(module, path)
        if target.split(".")[0] in PACKAGES and not allowed(module, target)
    ]


def test_arrows() -> None:
    wrong = [line for module, path in MODULES.items() for line in wrong_arrows(module, path)]
    assert not wrong, "\n".join(wrong)


def test_each_arrow_is_used() -> None:
    """What a row allows and nobody imports would let somebody import it unseen. The benchmarks may have all."""
    used = {part(module): set[str]() for module in MODULES}
    for module, path in MODULES.items():
        used[part(module)] |= {part(target) for _, target in imported(module, path) if target.split(".")[0] in PACKAGES}
    unused = {key: row - used[key] for key, row in ARROWS.items() if key != "benchmarks" and row - used[key]}
    assert not unused


def circles(arrows: dict[str, set[str]]) -> set[tuple[str, ...]]:
    """The sets of modules each of which leads to all others (Tarjan 1972, depth-first search and linear algorithms)."""
    found: set[tuple[str, ...]] = set()
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for target in arrows[module]:
            if target not in number:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in path:
                lowest[module] = min(lowest[module], number[target])
        if lowest[module] == number[module]:
            ring = path[path.index(module) :]
            del path[path.index(module) :]
            if len(ring) > 1:
                found.add(tuple(sorted(ring)))

    for module in arrows:
        if module not in number:
            visit(module)
    return found


def test_no_circle() -> None:
    """Also none within a part, and none that an import inside a function hides."""
    arrows = {
        module: {target for _, target in imported(module, path) if target in MODULES and target != module}
        for module, path in MODULES.items()
    }
    assert not circles(arrows)


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {("b", "c")}


def test_only_the_standard_library_and_two_packages() -> None:
    known = sys.stdlib_module_names | THIRD_PARTY | set(PACKAGES)
    foreign = [
        f"{os.path.relpath(path, ROOT)}:{line}: {target}"
        for module, path in MODULES.items()
        if not module.startswith("benchmarks")
        for line, target in imported(module, path)
        if target.split(".")[0] not in known
    ]
    assert not foreign, "\n".join(foreign)


def test_fuse_speaks_bytes_only() -> None:
    """The wire protocol has no descriptor, no thread and no os."""
    wrong = [
        f"{module}:{line}: {target}"
        for module, path in MODULES.items()
        if module.startswith("unionfs.fuse")
        for line, target in imported(module, path)
        if target.split(".")[0] in ("os", "socket", "fcntl", "mmap", "threading", "subprocess", *SERVING)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    """Who imports whom, part by part: `pytest -rP tests/test_layering.py -k picture` shows it."""
    arrows: dict[str, set[str]] = {key: set() for key in ARROWS}
    for module, path in MODULES.items():
        arrows[part(module)] |= {part(target) for _, target in imported(module, path) if target in MODULES}
    for package in PACKAGES:
        print(f"\n{package}")
        for key in (key for key in ARROWS if key.split(".")[0] == package):
            print(f"    {key:40} -> {', '.join(sorted(arrows[key] - {key}))}")
    picture = capsys.readouterr().out
    assert picture.count(" -> ") == len(ARROWS)
    print(picture)


def test_a_wrong_arrow_is_seen(tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "wrong.py")
    with open(path, "w", encoding="utf-8") as out:
        out.write("import os\ndef f():\n    from unionfs.serve import x\n    from ..union import y\n")
    assert wrong_arrows("unionfs.linux.wrong", path) == [
        f"{os.path.relpath(path, ROOT)}:3: unionfs.linux.wrong must not import unionfs.serve",
        f"{os.path.relpath(path, ROOT)}:4: unionfs.linux.wrong must not import unionfs.union",
    ]


NOT_SERVING = [
    module
    for module in MODULES
    if module.split(".")[0] in ("drivers", "runtime", "benchmarks") or module in ("unionfs", "unionfs.cli")
    or module.startswith(("unionfs.linux", "unionfs.union", "unionfs.fuse", "unionfs.options"))
    if not module.endswith("__main__")
]


def test_importing_what_does_not_serve_imports_no_transport() -> None:
    """trio and pyfuse3 cost 200 ms of start-up: only a process that serves a mount pays it."""
    script = (
        "import importlib, sys\n"
        f"for name in {NOT_SERVING!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [heavy for heavy in {SERVING!r} if heavy in sys.modules]\n"
        "    if loaded: sys.exit(f'importing {name} imports {loaded}')\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_what_commands_import(tmp_path: object) -> None:
    """A table of them: `pytest -rP tests/test_layering.py -k import`. Each module costs every start of its command."""
    environment = {**os.environ, "FUSE_AUFS_ROOT": f"{tmp_path}/root", "FUSE_AUFS_STATE": f"{tmp_path}/state"}
    for words, most in IMPORTS.items():
        command = [sys.executable, "-X", "importtime", "-m", *words.split()]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")][1:]
        took = sum(int(line.removeprefix("import time:").split("|")[0]) for line in lines)
        print(f"{words:30} {len(lines):4} modules {took / 1000:7.1f} ms")
        assert len(lines) <= most, words


@pytest.mark.parametrize(
    "command",
    [
        ["runtime", "--help"], ["runtime", "images"], ["runtime", "ps", "-a"], ["runtime", "info"],
        ["unionfs", "--help"], ["unionfs", "umount", "/nonexistent/mount"], ["unionfs", "mount", "/nonexistent", "/x"],
    ],
    ids=" ".join,
)
def test_commands_that_do_not_serve_load_no_transport(command: list[str], tmp_path: object) -> None:
    """The whole command is run, so an import inside a function counts."""
    environment = {**os.environ, "FUSE_AUFS_ROOT": f"{tmp_path}/root", "FUSE_AUFS_STATE": f"{tmp_path}/state"}
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )
    assert "Traceback" not in run.stderr and "No module named" not in run.stderr, run.stderr[-2000:]
    names = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines() if line.startswith("import time:")}
    assert "encodings" in names
    assert names.isdisjoint(SERVING), sorted(names & set(SERVING))


def wrongly_shared(path: str) -> list[str]:
    """Imports of a file of tests that are of another test file, or of a name that its module keeps to itself."""
    with open(path, encoding="utf-8") as source:
        tree = ast.parse(source.read(), path)
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    names = [(node.lineno, f"{node.module}.{alias.name}") for node in froms for alias in node.names]
    plain = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    names += [(node.lineno, alias.name) for node in plain for alias in node.names]
    ours = [(line, parts) for line, name in names if (parts := name.split("."))[0] in ("tests", *PACKAGES)]
    return [
        f"{os.path.relpath(path, ROOT)}:{line}: {'.'.join(parts)}"
        for line, parts in ours
        if any(part.startswith(("test_", "_")) and not part.endswith("__") for part in parts)
    ]


def test_tests_share_by_modules_of_their_own() -> None:
    """A test file can be moved, split or deleted and no other is concerned; fixtures are in a conftest.py."""
    files = [os.path.join(at, name) for at, _, names in os.walk(os.path.join(ROOT, "tests")) for name in names]
    wrong = [line for path in sorted(files) if path.endswith(".py") for line in wrongly_shared(path)]
    assert not wrong, "\n".join(wrong)
