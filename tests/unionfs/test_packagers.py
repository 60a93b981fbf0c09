"""Package managers over a lower tree, off line: dpkg, pip, npm. Each replaces, backs up and deletes files in its own
way, and trusts what it wrote after a remount."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounting import Union
from tests.trees import assert_same, build, read

pytestmark = pytest.mark.needs("fuse", "trusted-xattr")


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


# dpkg: a new file is written beside the old one, which is linked to a third name, and renamed over it.


def package(home: Path, version: int, files: dict[str, str]) -> Path:
    """Of version `version`; what is in /etc is a configuration file."""
    tree = home / f"tool-{version}"
    control = f"Package: tool\nVersion: {version}\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: d\n"
    build(str(tree), {"DEBIAN": {"control": control}})
    (tree / "DEBIAN" / "conffiles").write_text("".join(f"/{name}\n" for name in files if name.startswith("etc/")))
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    os.symlink("tool", tree / "usr/bin/alias")
    made = home / f"tool_{version}.deb"
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made)
    return made


@pytest.mark.needs("program:dpkg", "program:dpkg-deb")
@pytest.mark.parametrize("transport", ["auto"])
def test_dpkg(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """Installed below, replaced through the union, configured by hand, purged; nothing of it is left."""
    first = package(tmp_path, 1, {"usr/bin/tool": "one", "usr/share/tool/old": "old", "etc/tool": "as shipped"})
    second = package(tmp_path, 2, {"usr/bin/tool": "two", "usr/share/tool/new": "new", "etc/tool": "changed"})
    low = tmp_path / "low"
    build(str(low / "var/lib/dpkg"), {"status": "", "available": "", "updates": {}, "info": {}, "triggers": {}})
    dpkg = ("dpkg", "--force-unsafe-io", "--force-not-root", "--force-bad-path", f"--log={tmp_path}/log")
    run(*dpkg, f"--root={low}", "--install", first)
    before = read(str(low))
    union = mount_union("low", "up")
    root = Path(union.path)
    (root / "etc/tool").write_text("as I want it")
    run(*dpkg, f"--root={root}", "--force-confold", "--install", second)
    union.remount()
    assert run(*dpkg, f"--root={root}", "--verify", "tool").split() == ["??5??????", "c", "/etc/tool"]
    assert (root / "usr/bin/alias").read_text() == "two"
    assert (root / "etc/tool").read_text() == "as I want it"
    assert os.listdir(root / "usr/share/tool") == ["new"]
    run(*dpkg, f"--root={root}", "--purge", "tool")
    union.remount()
    assert not [name for name in ("usr", "etc") if (root / name).exists()]
    assert "tool" not in (root / "var/lib/dpkg/status").read_text()
    run(*dpkg, f"--root={root}", "--install", first)
    assert (root / "usr/bin/tool").read_text() == "one"
    assert_same(before, read(str(low)), "of the lower branch")


def wheel(home: Path, version: int, modules: dict[str, str]) -> Path:
    made = home / f"tool-{version}-py3-none-any.whl"
    about = f"tool-{version}.dist-info"
    texts = {f"tool/{name}.py": text for name, text in modules.items()} | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: tool\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[console_scripts]\ntool = tool:main\n",
    }
    with zipfile.ZipFile(made, "w") as file:
        for name, text in texts.items():
            file.writestr(name, text)
        file.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in [*texts, f"{about}/RECORD"]))
    return made


@pytest.mark.parametrize("transport", ["auto"])
def test_pip(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """An environment of the lower branch: its package is replaced, then taken away."""
    low = tmp_path / "low"
    run(sys.executable, "-m", "venv", "--without-pip", "--copies", low / "env")
    first = wheel(tmp_path, 1, {"__init__": "def main(): print('one')\n", "gone": ""})
    second = wheel(tmp_path, 2, {"__init__": "def main(): print('two')\n", "more": ""})
    # The scripts name the interpreter at the place where it was installed from.
    pip = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--no-input", "--python")
    no_index = ("--no-index", "--no-deps", "--no-cache-dir")
    run(*pip, low / "env/bin/python", "install", *no_index, first)
    union = mount_union("low", "up")
    python = Path(union.path, "env/bin/python")
    run(*pip, python, "install", *no_index, "--upgrade", second)
    union.remount()
    assert run(python, "-c", "import tool; tool.main()") == "two\n"
    assert run(f"{union.path}/env/bin/tool") == "two\n"
    [installed] = Path(union.path).glob("env/lib/*/site-packages/tool")
    assert sorted(name for name in os.listdir(installed) if name.endswith(".py")) == ["__init__.py", "more.py"]
    run(*pip, python, "uninstall", "-y", "tool")
    assert not installed.exists() and not Path(union.path, "env/bin/tool").exists()


@pytest.mark.needs("program:npm")
@pytest.mark.parametrize("transport", ["auto"])
def test_npm_ci(mount_union: Callable[..., Union], tmp_path: Path) -> None:
    """It deletes node_modules of the lower branch, and makes it anew as the lock file says."""
    low = tmp_path / "low" / "app"
    build(str(tmp_path / "source"), {"dep": {"package.json": json.dumps({"name": "dep", "version": "1.0.0"})}})
    (tmp_path / "source/dep/index.js").write_text("module.exports = 42\n")
    environment = {"HOME": str(tmp_path), "npm_config_cache": f"{tmp_path}/cache", "npm_config_offline": "true",
                   "npm_config_audit": "false", "npm_config_fund": "false", "npm_config_update_notifier": "false"}
    low.mkdir(parents=True)
    run("npm", "pack", "--silent", "--pack-destination", low, tmp_path / "source/dep", **environment)
    (low / "package.json").write_text(json.dumps({"name": "app", "dependencies": {"dep": "file:dep-1.0.0.tgz"}}))
    run("npm", "install", "--silent", "--prefix", low, **environment)
    (low / "node_modules/dep/index.js").write_text("module.exports = 'spoiled'\n")
    build(str(low / "node_modules/stray"), {"index.js": ""})
    union = mount_union("low", "up")
    app = f"{union.path}/app"
    for _ in range(2):
        run("npm", "ci", "--silent", "--prefix", app, **environment)
        assert sorted(name for name in os.listdir(f"{app}/node_modules") if name[0] != ".") == ["dep"]
        assert Path(app, "node_modules/dep/index.js").read_text() == "module.exports = 42\n"
        union.remount()
