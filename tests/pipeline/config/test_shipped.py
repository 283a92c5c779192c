"""Shipped recipes are found by name, from anywhere, and name no file that only a clone has."""

from __future__ import annotations

from pathlib import Path

import pytest
from repository import ROOT

import stages.registry  # noqa: F401 (registers stages)
from pipeline.config import shipped
from pipeline.config.load import load_recipe
from pipeline.engine import registry
from pipeline.errors import RecipeError


def test_a_name_loads_the_shipped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, file in (("quickstart", "quickstart.yaml"), ("tldr/qwen3-1.7b", "tldr/qwen3-1.7b.yaml")):
        loaded = load_recipe(name)
        assert loaded.path == ROOT / "recipes" / file
        assert loaded.recipe == load_recipe(ROOT / "recipes" / file).recipe


def test_messages_call_a_shipped_recipe_by_its_name_outside_of_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe("quickstart-qat", ["seed=1"])
    assert loaded.describe("base.pretrain.vocab_size").startswith("quickstart:")
    assert load_recipe("quickstart-qat", ["seed=1"]).recipe == loaded.recipe


def test_a_file_in_the_working_directory_goes_before_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("extends: [hardware/gpu-8gb, quickstart-qat]\nname: mine\n")
    assert load_recipe("quickstart").recipe.name == "mine"


def test_a_recipe_extends_shipped_ones_by_name(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: [quickstart, hardware/gpu-8gb]\nname: mine\n")
    loaded = load_recipe(recipe).recipe
    assert loaded.base.pretrain == load_recipe(ROOT / "recipes/quickstart.yaml").recipe.base.pretrain
    assert loaded.hardware.memory is not None


def test_names_are_recipes_and_no_parts() -> None:
    names = shipped.recipes()
    assert {"quickstart", "e2e-human", "hh-rlhf/llama-3.1-8b"} <= set(names)
    assert not {"hh-rlhf/data", "hardware/gpu-8gb", "models/llama-3.1-8b"} & set(names)


@pytest.mark.parametrize("name", shipped.recipes())
def test_shipped_recipe_needs_nothing_of_a_clone(name: str) -> None:
    assert not registry.is_step(name), "the argument of `tutelage run` would mean the stage"
    recipe = load_recipe(name).recipe
    files = {dotted: path for spec in registry.STAGES.values() for dotted, path in spec.files(recipe).items()}
    assert files == {}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quikstart", "the shipped recipe quickstart?"),
        ("recipes/quickstart.yaml", "the shipped recipe quickstart?"),
        ("../recipes/tldr/qwen3-1.7b.yaml", "the shipped recipe tldr/qwen3-1.7b?"),
        ("elsewhere/mine.yaml", "that is shipped: e2e-human-criteria, e2e-human, hh-rlhf/*"),
    ],
)
def test_a_file_that_is_not_there(name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=f"cannot read the recipe {name}: there is no such file") as caught:
        load_recipe(name)
    assert hint in caught.value.hint


def test_a_parent_that_is_not_there(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: [quickstart, hardware/gpu-8g]\nname: mine\n")
    with pytest.raises(RecipeError, match="gpu-8g: there is no such file") as caught:
        load_recipe(recipe)
    assert caught.value.where == f"named in extends of {recipe}"
    assert caught.value.hint == "did you mean the shipped recipe hardware/gpu-8gb?"
