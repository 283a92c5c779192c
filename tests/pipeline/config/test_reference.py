"""docs/recipes.md matches the config dataclasses."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from repository import ROOT

from pipeline.config import reference as reference_module
from pipeline.config.load import flatten, load_recipe
from pipeline.config.reference import reference

PAGE = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")


def test_the_page_is_current() -> None:
    assert reference() == PAGE, "run `make docs`"


@pytest.mark.parametrize("recipe", ["quickstart", "e2e-human"])
def test_every_value_of_a_recipe_is_there(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    values = flatten(asdict(load_recipe(f"recipes/{recipe}.yaml").recipe))
    for path in values:
        name = path.partition(".trainer.")[0].partition(".columns.")[0].rpartition(".")[2]
        assert f"| `{name}` |" in PAGE, path


def test_a_value_without_a_docstring_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = reference_module._sources

    def undocumented(section: type[Any]) -> dict[str, Any]:
        return {name: (*rest, "" if name == "gamma" else text) for name, (*rest, text) in sources(section).items()}

    monkeypatch.setattr(reference_module, "_sources", undocumented)
    with pytest.raises(ValueError, match=r"PPOConfig\.gamma has no docstring"):
        reference()


def test_types_defaults_and_words_are_those_of_the_code() -> None:
    for row in (
        "| `kind` | `fixed`, `adaptive`, `solved` | `adaptive` | fixed: the coefficient stays at `init`",
        "| `lam` | number (above 0, at most 1) | `0.95` |",
        "| `micro_batch_size` | integer, at least 1, or `auto`, or null | null | **r** Sequences per forward",
        "| `rankings` | a table, or a table for each criterion, or null | null | Existing rankings",
        "| `select` | `random`, `disagreement` | `random` | **l** How a later round",
        "| `size` | integer, at least 1 | required | How many texts. |",
    ):
        assert row in PAGE, row
