"""The wheel contains everything that a run needs, and modules in the working directory do not shadow ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from repository import ROOT

from pipeline.engine import launch as launching

PACKAGES = ("pipeline", "data", "ranking", "stages")
COMMAND = Path(sys.executable).parent / "tutelage"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(source), "--no-build-isolation", "--wheel-dir", str(out))
    return next(out.glob("*.whl"))


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pip", *arguments, "--no-deps", "--no-index", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_wheel_contains_all_packages_and_recipes(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in packed if "dist-info" not in name} == set(PACKAGES)
    needed = {
        str(file.relative_to(ROOT))
        for name in PACKAGES
        for file in (ROOT / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    needed |= {f"pipeline/{file.relative_to(ROOT)}" for file in (ROOT / "recipes").rglob("*.yaml")}
    assert needed <= packed


@pytest.mark.slow
def test_a_shipped_recipe_works_outside_of_a_clone(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    pip("install", str(wheel), "--target", str(site))

    def tutelage(*arguments: str) -> str:
        return subprocess.run(
            [site / "bin/tutelage", *arguments],
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "base     run     no earlier result" in tutelage("plan", "quickstart")
    assert 'name: "quickstart-qat"' in tutelage("show", "--recipe", "quickstart-qat")
    (work / "where.py").write_text("import stages.__main__, pipeline.config.shipped as s; print(s.FOLDER)")
    where = subprocess.run(
        [sys.executable, "-P", "where.py"],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(where.strip()) == (site / "pipeline/recipes").resolve(), "the installed recipes, not the clone's"


@pytest.fixture
def users_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with modules that have the names of our packages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in PACKAGES:
        Path(f"{name}.py").write_text(f"open('imported-{name}', 'w')\n")
    return tmp_path


def imported(folder: Path) -> list[Path]:
    return list(folder.glob("imported-*"))


def test_without_safe_path_the_users_module_would_be_imported(users_modules: Path) -> None:
    subprocess.run([sys.executable, "-c", "import data"], check=True)
    assert imported(users_modules) == [users_modules / "imported-data"]


@pytest.mark.parametrize("program", [[sys.executable, "-P", "-m", "stages"], [str(COMMAND)]])
def test_a_command_does_not_import_the_users_modules(users_modules: Path, program: Sequence[str]) -> None:
    done = subprocess.run([*program, "plan", "quickstart"], capture_output=True, text=True, check=True)
    assert "no earlier result" in done.stdout
    assert imported(users_modules) == []


@pytest.mark.parametrize("program", [ROOT / "stages/__main__.py", COMMAND], ids=["module", "console script"])
def test_processes_of_a_run_do_not_import_the_users_modules(
    users_modules: Path, program: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(program), "run", "--nproc", "2"])
    launching.launch(2, ["plan", "quickstart"])
    assert capfd.readouterr().out.count("memory on") == 2
    assert imported(users_modules) == []


@pytest.mark.parametrize("file", [".github/workflows/ci.yml", "Dockerfile"])
def test_ci_and_container_install_the_pinned_torch(file: str) -> None:
    [pinned] = re.findall(r"^(torch==\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"torch==[\w.]+", (ROOT / file).read_text(encoding="utf-8"))) == {pinned}


def test_github_files_are_valid_yaml() -> None:
    files = sorted((ROOT / ".github").rglob("*.yml"))
    loaded = {file.name: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    assert {"ci.yml", "bug.yml", "feature.yml"} <= set(loaded)
    steps = loaded["ci.yml"]["jobs"]["check"]["steps"]
    assert [step["run"] for step in steps if step.get("run") == ".ci/run"] == [".ci/run"]
    for name in ("bug.yml", "feature.yml"):
        assert {"name", "description", "body"} <= set(loaded[name])
