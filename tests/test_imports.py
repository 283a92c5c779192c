"""Imports go one way, stages -> ranking -> data -> pipeline, including module names in strings."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

LAYERS = ("pipeline", "data", "ranking", "stages")
ALLOWED = {package: set(LAYERS[: place + 1]) for place, package in enumerate(LAYERS)}
LIGHT = {"pydantic", "pydantic_core", "yaml", "typer", "typing_extensions", "rich", "filelock", "pipeline"}
MATHS = (
    "stages/ppo/advantages.py",
    "stages/ppo/kl.py",
    "stages/ppo/losses.py",
    "stages/reward/likelihoods.py",
)


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide where a name comes from"
        return [node.module or ""]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value] if is_module(node.value) else []
    return []


def is_module(text: str) -> bool:
    """Whether a string names a module of the project, or something in one ("stages.ppo.stage:run")."""
    name = text.partition(":")[0]
    if not re.fullmatch(r"(pipeline|data|ranking|stages)(\.\w+)+", name):
        return False
    parts = name.split(".")
    return any(
        (path := ROOT.joinpath(*parts[:end])).with_suffix(".py").exists() or (path / "__init__.py").exists()
        for end in range(2, len(parts) + 1)
    )


def at_import(nodes: list[ast.stmt]) -> Iterator[str]:
    """The imports that run when the module is imported, not those inside functions."""
    for node in nodes:
        yield from imported(node)
        for name in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from at_import(getattr(node, name, []))


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    assert files(package)
    for file in files(package):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            packages = {name.partition(".")[0] for name in imported(node)} & set(ALLOWED)
            assert packages <= ALLOWED[package], f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def test_module_names_in_strings_are_recognised() -> None:
    assert is_module("stages.ppo.stage:run")
    assert is_module("stages.report.build.build_report")
    assert not is_module("data.rankings.columns")  # a path in a recipe
    assert not is_module("stages")


@pytest.mark.parametrize("file", MATHS)
def test_loss_modules_import_only_torch(file: str) -> None:
    names = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8")))
        for name in imported(node)
    }
    assert names <= {"torch", "stages"} | sys.stdlib_module_names


@pytest.mark.parametrize("file", files("ranking"), ids=lambda file: file.name)
def test_the_ranking_package_does_not_import_torch(file: Path) -> None:
    names = {
        name.partition(".")[0] for node in ast.walk(ast.parse(file.read_text("utf-8"))) for name in imported(node)
    }
    assert not names & {"torch", "transformers"}


@pytest.mark.parametrize("file", files("pipeline"), ids=lambda file: str(file.relative_to(ROOT)))
def test_pipeline_imports_are_light(file: Path) -> None:
    names = {name.partition(".")[0] for name in at_import(ast.parse(file.read_text(encoding="utf-8")).body)}
    assert names <= LIGHT | sys.stdlib_module_names


@pytest.mark.parametrize("benchmark", files("benchmarks"), ids=lambda path: path.name)
def test_benchmarks_that_run_stages_register_them(benchmark: Path) -> None:
    text = benchmark.read_text(encoding="utf-8")
    runs_stages = re.search(r"import .*\b(Planner|Runner)\b", text)
    assert not runs_stages or "from stages import registry" in text or "import stages.registry" in text
