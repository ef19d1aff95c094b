"""What a wheel holds: every configuration file, and the commands."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLI = "lightning_minillm.cli"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the tree, without a network."""
    pytest.importorskip("build", reason="the package 'build' makes the wheel")
    tree = tmp_path_factory.mktemp("tree")
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree / name)
    for name in ("conf", "lightning_minillm"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    (file,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(file)


def test_wheel_holds_every_module_and_configuration(wheel):
    names = {name for name in wheel.namelist() if name.startswith("lightning_minillm/")}
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "lightning_minillm").rglob("*.py")}
    conf = {f"lightning_minillm/{file.relative_to(ROOT)}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert names == modules | conf | {"lightning_minillm/conf/__init__.py", "lightning_minillm/py.typed"}


def test_wheel_holds_the_commands(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(name).decode())
    composed = {f"minillm-{name}": f"{CLI}.commands:{name}" for name in ("train", "evaluate", "generate", "recipe")}
    parsed = {f"minillm-{name}": f"{CLI}.{name}:main" for name in ("export", "plan", "compare")}
    assert dict(entries["console_scripts"]) == {**composed, **parsed}
    assert all(callable(resolve_name(target)) for target in entries["console_scripts"].values())


def test_versions_agree():
    import lightning_minillm

    assert f"version: {lightning_minillm.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_torch_is_pinned_in_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("torch==")] == ["torch==2.13.0"]
