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

# A part of the project -> the parts that it may import, besides itself. The longest prefix names a module's part, so
# "drivers" is what its folders and single drivers have not.
_UNIONFS = {
    "unionfs.linux": set[str](),
    "unionfs.fuse": set[str](),
    "unionfs.options": set[str](),
    "unionfs.union.form": set[str](),  # the vocabulary of branches on disk, for whoever reads or writes one
    "unionfs.union.opaque": {"unionfs.linux", "unionfs.union.form"},
    "unionfs.union": {"unionfs.linux", "unionfs.union.form", "unionfs.union.opaque"},
    "unionfs.serve": {"unionfs.linux", "unionfs.union", "unionfs.fuse"},
    "unionfs.transport": {"unionfs.linux", "unionfs.union", "unionfs.fuse", "unionfs.serve", "unionfs.options"},
    "unionfs.cli": {"unionfs", "unionfs.linux", "unionfs.union", "unionfs.transport", "unionfs.options"},
    "unionfs.__main__": {"unionfs.cli"},
    "unionfs": set[str](),
}
_SHARED = {"unionfs.linux", "drivers"}  # what every driver stands on
_DRIVERS = {
    "drivers": {
        "unionfs.linux", "unionfs.options", "unionfs.transport", "unionfs.union.form",
        "unionfs.union.opaque",  # marks
    },
    "drivers.archive": {*_SHARED, "unionfs.union.form"},
    "drivers.diff": {*_SHARED, "unionfs.union.form", "drivers.archive"},
    "drivers.fuse_aufs": {*_SHARED, "unionfs.union.form", "unionfs.transport"},  # transport: what `probe` asks
    "drivers.overlay2": _SHARED,
    "drivers.vfs": _SHARED,
    "drivers.btrfs": _SHARED,
    "drivers.zfs": _SHARED,
    "drivers.devicemapper": _SHARED,
}  # fmt: skip
_BELOW = {"runtime.errors", "unionfs.linux", "drivers"}  # what all of the runtime but oci stands on
_RUNTIME = {
    "runtime": set[str](),
    "runtime.errors": set[str](),
    "runtime.oci": {"runtime.errors", "unionfs.linux"},
    "runtime.images": {*_BELOW, "drivers.archive", "drivers.diff"},
    "runtime.registry": {*_BELOW, "runtime.images"},
    "runtime.engine.network": _BELOW,
    "runtime.engine.shim": {*_BELOW, "runtime.engine", "runtime.engine.network", "runtime.oci"},
    "runtime.engine": {
        *_BELOW, "drivers.archive", "drivers.diff", "runtime.images", "runtime.registry", "runtime.oci",
        "runtime.engine.network",
    },
    "runtime.cli": {
        *_BELOW, "drivers.archive", "drivers.diff", "runtime.images", "runtime.registry", "runtime.oci",
        "runtime.engine",
    },
    "runtime.__main__": {"runtime.cli"},
}  # fmt: skip
ARROWS: dict[str, set[str]] = {
    **_UNIONFS, **_DRIVERS, **_RUNTIME, "benchmarks": {*_UNIONFS, *_DRIVERS, *_RUNTIME},
}  # fmt: skip

# Circles of modules that there still are; each is somebody's next change.
CIRCLES = {
    ("runtime.engine.attach", "runtime.engine.start", "runtime.engine.waiting"),
}  # fmt: skip
SERVING = ("pyfuse3", "trio")
THIRD_PARTY = {"pyfuse3", "trio"}


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
    assert circles(arrows) == CIRCLES


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
