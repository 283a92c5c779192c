from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from repository import ROOT

from pipeline.config.load import LoadedRecipe
from pipeline.engine import registry

DATA_RANKINGS = "rank.source=data data.rankings={path: r.csv, format: pairs}"


def test_every_stage_comes_after_what_it_needs() -> None:
    seen: set[str] = set()
    for name, spec in registry.STAGES.items():
        assert set(spec.needs) <= seen
        seen.add(name)


def test_simulated_rankings_are_collected_and_given_ones_are_not(load: Callable[..., LoadedRecipe]) -> None:
    simulated = {spec.name: needs for spec, needs in registry.planned(load().recipe)}
    assert simulated["rank"] == ("data", "collect")
    people = load("rank.source=app rank.app.annotators=[ana, ben]").recipe
    assert {spec.name: needs for spec, needs in registry.planned(people)} == simulated
    given = {spec.name: needs for spec, needs in registry.planned(load(DATA_RANKINGS).recipe)}
    assert "collect" not in given
    assert given["rank"] == ("data",)
    assert given["reward"] == ("base", "data", "sft", "rank")


def test_a_corpus_that_is_a_table_is_read_after_the_data(load: Callable[..., LoadedRecipe]) -> None:
    """Its documents are compared with the held-out prompts. A generated corpus knows them."""
    table = load("base.pretrain.corpus={path: c.jsonl}").recipe
    steps = registry.planned(table)
    assert [spec.name for spec, _ in steps][:3] == ["data", "base", "sft"]
    assert {spec.name: needs for spec, needs in steps}["base"] == ("data",)
    assert [spec.name for spec, _ in registry.planned(table, "base")] == ["data", "base"]
    ignored = "data.contamination={exact: ignore, near: ignore}"
    assert registry.planned(load("base.pretrain.corpus={path: c.jsonl}", ignored).recipe)[0][0].name == "data"
    pairs = "base.pretrain.corpus={path: c.jsonl, columns: {prompt: q, completion: a}}"
    assert registry.planned(load(pairs).recipe)[0][0].name == "data"
    assert registry.planned(load(pairs, ignored).recipe)[0][0].name == "base"
    generated = load().recipe
    steps = registry.planned(generated)
    assert [spec.name for spec, _ in steps][:3] == ["base", "data", "sft"]
    assert {spec.name: needs for spec, needs in steps}["base"] == ()


def test_until_takes_only_what_the_stage_needs(load: Callable[..., LoadedRecipe]) -> None:
    assert [spec.name for spec, _ in registry.planned(load().recipe, "sft")] == ["base", "data", "sft"]
    assert [spec.name for spec, _ in registry.planned(load().recipe, "data")] == ["data"]


@pytest.mark.parametrize(
    ("given", "stage", "expected"),
    [
        ("", "base", {}),
        ("base.model=a/b base.revision=c", "base", {}),
        ("base.model=./weights", "base", {"base.model": Path("weights")}),
        ("base.model=w.gguf", "base", {"base.model": Path("w.gguf")}),
        ("base.chat_template=chatml", "base", {}),
        ("base.chat_template=t.jinja", "base", {"base.chat_template": Path("t.jinja")}),
        ("base.pretrain.corpus.path=c.txt", "base", {"base.pretrain.corpus.path": Path("c.txt")}),
        ("base.pretrain.corpus.path=https://x.org/c.txt", "base", {}),
        (DATA_RANKINGS, "data", {"data.rankings.path": Path("r.csv")}),
        ("data.prompts.path=hub://a/b@c", "data", {}),
        ("reward.model=./models/bert", "reward", {"reward.model": Path("models/bert")}),
        ("reward.model=a/bert reward.revision=c", "reward", {}),
        (
            "reward.pretrain_on={path: more.csv, format: pairs}",
            "reward",
            {"reward.pretrain_on.path": Path("more.csv")},
        ),
        ("ppo.reward_model=./models/rm", "ppo", {"ppo.reward_model": Path("models/rm")}),
        ("eval.judge=venues", "eval", {}),
        ("eval.judge=my.yaml", "eval", {"eval.judge": Path("my.yaml")}),
    ],
)
def test_local_files(load: Callable[..., LoadedRecipe], given: str, stage: str, expected: dict[str, Path]) -> None:
    assert registry.STAGES[stage].files(load(given).recipe) == expected


@pytest.mark.parametrize("spec", registry.STAGES.values(), ids=lambda spec: spec.name)
def test_every_target_is_there(spec: registry.StageSpec) -> None:
    module, function = spec.target.split(":")
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = {
        name
        for node in ast.parse(file.read_text()).body
        for name in (
            [alias.asname or alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else [getattr(node, "name", "")]
        )
    }
    assert function in names


@pytest.mark.parametrize(
    ("given", "judge"),
    [
        ("", "none"),
        ("eval.judge=venues", "venues"),
        ("eval.judge=venues ppo.monitor.judge=none", "none"),
        ("eval.judge=venues ppo.monitor.judge=e2e", "e2e"),
    ],
)
def test_ppo_gets_the_judge_of_its_evaluation_points(
    load: Callable[..., LoadedRecipe], given: str, judge: str
) -> None:
    """By its config, so that another judge is another run."""
    recipe = load(*given.split()).recipe
    spec = registry.STAGES["ppo"]
    assert spec.config(recipe).monitor.judge == judge
    assert spec.keyed(recipe)["monitor"]["judge"] == judge


def test_a_judge_that_is_a_file_enters_ppos_key(load: Callable[..., LoadedRecipe]) -> None:
    spec = registry.STAGES["ppo"]
    assert spec.files(load("eval.judge=my.yaml").recipe) == {"eval.judge": Path("my.yaml")}
    assert spec.files(load("ppo.monitor.judge=models/rm").recipe) == {"ppo.monitor.judge": Path("models/rm")}
    assert spec.files(load("eval.judge=venues").recipe) == {}


def test_make_has_a_target_for_every_stage() -> None:
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f" {' '.join(registry.STAGES)}\n" in help_text


def test_every_stage_has_a_section_of_the_recipe_and_a_summary(load: Callable[..., LoadedRecipe]) -> None:
    for name, spec in registry.STAGES.items():
        assert hasattr(load().recipe, name)
        assert spec.summary, name
