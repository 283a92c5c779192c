"""Every shipped recipe loads. Files without a name are parts for `extends`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from repository import ROOT

from pipeline.config.load import load_recipe
from pipeline.engine.plan import Planner

NAMED = [
    file
    for file in sorted((ROOT / "recipes").rglob("*.yaml"))
    if "name" in yaml.safe_load(file.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("file", NAMED, ids=lambda file: str(file.relative_to(ROOT)))
def test_recipe_is_valid(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_recipe(file).recipe.name


@pytest.mark.parametrize("file", NAMED, ids=lambda file: str(file.relative_to(ROOT)))
def test_recipe_can_be_planned(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    loaded = load_recipe(file)
    steps = Planner(loaded, tmp_path).plan()
    assert {step.action for step in steps} <= {"run", "wait"}
    names = [step.spec.name for step in steps]
    assert names[:2] == ["base", "data"]
    assert ("sft" in names) == (loaded.recipe.sft is not None)


def test_every_folder_of_recipes_has_its_measurements() -> None:
    folders = {file.parent for file in NAMED if file.parent != ROOT / "recipes"}
    assert {"hh-rlhf", "tldr", "oasst1", "ultrafeedback"} <= {folder.name for folder in folders}
    for folder in folders:
        page = (folder / "README.md").read_text(encoding="utf-8")
        for part in (
            "**What it does.**",
            "**Data.**",
            "**What to expect.**",
            "**What was measured.**",
            "## Models",
        ):
            assert part in page, folder.name
        for file in folder.glob("*.yaml"):
            assert file.name == "data.yaml" or f"`{file.name}`" in page, file


@pytest.mark.parametrize("file", sorted((ROOT / "recipes/hardware").glob("*.yaml")), ids=lambda file: file.stem)
def test_part_fits_the_default_recipe(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = tmp_path / "made.yaml"
    recipe.write_text(f"extends: [{ROOT / 'recipes/quickstart.yaml'}, {file}]\nname: made\n")
    assert load_recipe(recipe).recipe != load_recipe(ROOT / "recipes/quickstart.yaml").recipe


def test_the_default_recipe_is_there() -> None:
    assert ROOT / "recipes/quickstart.yaml" in NAMED


def test_recipes_have_names_of_their_own() -> None:
    names = [load_recipe(file).recipe.name for file in NAMED]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("file", NAMED, ids=lambda file: str(file.relative_to(ROOT)))
def test_downloads_are_checked_by_hash(file: Path) -> None:
    for url in re.findall(r"""path: ["']?(https://[^\s"']+)""", file.read_text(encoding="utf-8")):
        assert re.search(r"#sha256=[0-9a-f]{64}$", url), url
