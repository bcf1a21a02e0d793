"""What an installed Whet must hold: its data files, its version, its import layers, and a quick `import whet`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import whet

ROOT = Path(__file__).parents[1]
PACKAGE = Path(whet.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version():
    assert whet.__version__ == project()["version"]


def test_every_public_name_is_found():
    for name in whet.__all__:
        assert getattr(whet, name) is not None


@pytest.mark.parametrize("module", ["whet", "whet.papers", "whet.config", "whet.tasks"])
def test_light_modules_load_no_torch(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip() == "[]", done.stderr


def test_import_layers():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_no_file_outgrows_its_idea():
    assert len(SOURCES) > 50
    long = {str(f.relative_to(PACKAGE)): n for f in SOURCES if (n := len(f.read_text().splitlines())) >= 420}
    assert not long, f"split these: {long}"


def test_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {plain(name): version for name, version in pins.items()}
    assert pins["torch"] == "2.13.0"
    extras = project()["optional-dependencies"]
    wanted = [*project()["dependencies"], *(r for e in ("tasks", "data", "report", "dev") for r in extras[e])]
    for requirement in wanted:
        name = plain(re.split(r"[<>=\[]", requirement)[0])
        assert name == "whet" or name in pins, f"constraints.txt pins no version of {name}"


def plain(name: str) -> str:
    """A distribution's name as indexes normalise it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_package_is_typed_and_its_data_is_beside_it():
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "papers.toml").exists()
    assert list((PACKAGE / "models" / "shipped").glob("*.yaml"))


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    """Slow: it builds the wheel, for which pip fetches the build backend."""
    done = run(sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "-w", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("whet-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    own = {f for f in PACKAGE.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    assert {str(f.relative_to(PACKAGE.parent)) for f in own} <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)
