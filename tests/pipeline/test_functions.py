"""Functions that a recipe names, looked at without running them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import functions
from pipeline.functions import FunctionName

TEXT = """
import os
raise RuntimeError("this file must not run")

def plain(prompts, completions, **kwargs): ...
async def later(completions, *, style="x"): ...
def needs(completions, solution): ...
class Made:
    def __call__(self): ...
if os.name:
    inside = Made()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rewards.py"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("name", ["plain", "later", "Made", "inside"])
def test_what_can_be_called_is_accepted(file: Path, name: str) -> None:
    assert functions.problem(f"{file}:{name}") is None


def test_arguments_are_compared_with_the_metadata(file: Path) -> None:
    assert "needs the argument solution" in (functions.problem(f"{file}:needs") or "")
    assert functions.problem(f"{file}:needs", ["solution"]) is None


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("rewards.py", "must be file.py:function"),
        ("nowhere_at_all.module:f", "no module nowhere_at_all.module is installed"),
        ("json.decoder.deeper:f", "no module json.decoder.deeper is installed"),
    ],
)
def test_names_that_lead_nowhere(text: str, phrase: str) -> None:
    assert phrase in (functions.problem(text) or "")


def test_a_misspelt_function_and_a_broken_file_are_named(file: Path) -> None:
    assert (functions.problem(f"{file}:plan") or "").endswith("has no plan; did you mean plain?")
    file.write_text("def f(:\n")
    assert f"{file}:1 is not valid Python" in (functions.problem(f"{file}:f") or "")


def test_modules_are_located_without_importing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_rewards"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError")
    (package / "style.py").write_text("def f(completions): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert FunctionName("my_rewards.style", "f").file() == package / "style.py"
    assert functions.problem("my_rewards.style:f") is None
    assert "my_rewards" not in sys.modules
