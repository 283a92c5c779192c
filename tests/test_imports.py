"""Imports go one way: stages -> ranking -> data -> pipeline; and pipeline's own are light."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

LAYERS = ("pipeline", "data", "ranking", "stages")
ALLOWED = {package: set(LAYERS[: place + 1]) for place, package in enumerate(LAYERS)}
LIGHT = {"pydantic", "pydantic_core", "yaml", "typer", "typing_extensions", "rich", "pipeline"}


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide where a name comes from"
        return [node.module or ""]
    return []


def at_import(nodes: list[ast.stmt]) -> Iterator[str]:
    """What is imported when the module is: not inside functions."""
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
            own = {name.partition(".")[0] for name in imported(node)} & set(ALLOWED)
            assert own <= ALLOWED[package], f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


@pytest.mark.parametrize("file", files("ranking"), ids=lambda file: file.name)
def test_people_rank_without_torch(file: Path) -> None:
    names = {
        name.partition(".")[0] for node in ast.walk(ast.parse(file.read_text("utf-8"))) for name in imported(node)
    }
    assert not names & {"torch", "transformers"}


@pytest.mark.parametrize("file", files("pipeline"), ids=lambda file: str(file.relative_to(ROOT)))
def test_pipeline_imports_are_light(file: Path) -> None:
    if "report" in file.parts:
        return  # the report is imported only when one is written
    names = {name.partition(".")[0] for name in at_import(ast.parse(file.read_text(encoding="utf-8")).body)}
    assert names <= LIGHT | sys.stdlib_module_names
