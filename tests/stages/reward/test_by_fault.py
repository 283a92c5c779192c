"""The reward model's held-out accuracy by kind of fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from data.schema import Prompt, prompt_key
from pipeline.config.load import LoadedRecipe
from pipeline.config.reward import RewardConfig
from pipeline.engine import registry
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError, RecipeError
from stages.reward import stage
from stages.reward.artifact import FaultAccuracy, RewardQuality
from stages.reward.by_fault import accuracy_by_fault, line, load_rubric

MR = "name[Blue Fox], kind[pub], food[Thai], area[harbour]"
RIGHT = "Blue Fox is a pub serving Thai food in the harbour."
SHORT = "Blue Fox is a pub serving Thai food."
SHORTER = "Blue Fox is a pub."
WRONG = "Blue Fox is a pub serving Greek food in the harbour."
SHORT_AND_WRONG = "Blue Fox is a pub serving Greek food."
TWICE = "Blue Fox is a pub serving Thai food in the harbour. It is in the harbour."
INVENTED = "Blue Fox is a pub serving Thai food in the harbour. It has low prices."


def prompt(mr: str = MR) -> Prompt:
    return Prompt(tiny.user(mr), "eval", "rankings.csv, row 3")


def by_kind(scores: dict[str, float], mr: str = MR) -> dict[str, FaultAccuracy]:
    rubric = load_rubric("venues", [prompt(mr)])
    assert rubric is not None
    key = prompt_key(tiny.user(mr))
    return {row.kind: row for row in accuracy_by_fault({(key, t): s for t, s in scores.items()}, rubric, seed=0)}


def test_only_pairs_that_differ_in_one_kind_of_fault_count() -> None:
    """Missing: right-short, right-shorter, short-shorter and wrong-(short and wrong). Wrong: right-wrong and
    short-(short and wrong); shorter-(short and wrong) differs in both kinds. The model sees the missing facts and
    not the wrong value."""
    scores = {RIGHT: 3.0, SHORT: 2.0, SHORTER: 1.0, WRONG: 3.5, SHORT_AND_WRONG: 2.5}
    rows = by_kind(scores)
    assert rows["missing"] == FaultAccuracy(kind="missing", pairs=4, accuracy=1.0, low=1.0, high=1.0)
    assert (rows["wrong"].pairs, rows["wrong"].accuracy) == (2, 0.0)
    assert rows["invented"] == FaultAccuracy(kind="invented", pairs=0, accuracy=None, low=None, high=None)
    assert rows["repeated"].pairs == 0


def test_equal_scores_count_half() -> None:
    rows = by_kind({RIGHT: 1.0, TWICE: 1.0, INVENTED: 0.0})
    assert (rows["repeated"].pairs, rows["repeated"].accuracy) == (1, 0.5)
    assert (rows["invented"].pairs, rows["invented"].accuracy) == (1, 1.0)


def test_answers_to_different_prompts_are_not_compared() -> None:
    rubric = load_rubric("venues", [prompt(), prompt("name[Red Fox]")])
    assert rubric is not None
    keys = [prompt_key(tiny.user(mr)) for mr in (MR, "name[Red Fox]")]
    rows = accuracy_by_fault({(keys[0], RIGHT): 1.0, (keys[1], "Red Fox in the harbour."): 0.0}, rubric, seed=0)
    assert [row.pairs for row in rows] == [0, 0, 0, 0]


def test_the_interval_is_over_prompts() -> None:
    """Half of 40 prompts are ordered correctly, with three pairs each: about 0.5 +- 1.96 * 0.5 / sqrt(40)."""
    mrs = [f"name[Blue Fox], kind[pub], food[Thai], area[harbour], near[{i}]" for i in range(40)]
    rubric = load_rubric("venues", [prompt(mr) for mr in mrs])
    assert rubric is not None
    scores = {
        (prompt_key(tiny.user(mr)), text): float(score if i % 2 else -score)
        for i, mr in enumerate(mrs)
        for score, text in enumerate((SHORTER, SHORT, RIGHT))
    }
    missing = accuracy_by_fault(scores, rubric, seed=0)[0]
    assert (missing.kind, missing.pairs, missing.accuracy) == ("missing", 120, 0.5)
    assert missing.low == pytest.approx(0.5 - 0.155, abs=0.04)
    assert missing.high == pytest.approx(0.5 + 0.155, abs=0.04)


def test_the_line_names_every_kind() -> None:
    rows = [
        FaultAccuracy(kind="missing", pairs=1412, accuracy=0.934, low=0.9, high=0.95),
        FaultAccuracy(kind="wrong", pairs=1, accuracy=0.0, low=0.0, high=0.0),
        FaultAccuracy(kind="repeated", pairs=0, accuracy=None, low=None, high=None),
    ]
    assert line(rows) == (
        "by kind of fault: missing 0.93 (1,412 pairs), wrong 0.00 (1 pair), repeated unknown (0 pairs)"
    )


@pytest.mark.parametrize("name", ["none", "eval"])
def test_no_rubric_reads_no_prompt(name: str) -> None:
    assert load_rubric(name, [prompt("not a meaning representation")]) is None


@pytest.mark.parametrize(
    ("text", "phrase"), [("Where is it?", "not a meaning representation"), ("stars[5]", "no attribute 'stars'")]
)
def test_a_prompt_that_the_rubric_does_not_fit_is_an_error_with_its_row(text: str, phrase: str) -> None:
    with pytest.raises(DataError, match="the rubric venues does not fit a held-out prompt") as error:
        load_rubric("venues", [prompt(), prompt(text)])
    assert phrase in error.value.what
    assert error.value.where == "rankings.csv, row 3"
    assert "reward.rubric: none" in error.value.hint


# --- The recipe ---


@pytest.mark.parametrize(
    ("values", "rubric"),
    [
        ("", "none"),
        ("eval.judge=venues", "venues"),
        ("eval.judge={folder}", "none"),
        ("eval.judge=venues reward.rubric=none", "none"),
        ("eval.judge=venues reward.rubric=e2e", "e2e"),
        ("reward.rubric=my.yaml", "my.yaml"),
    ],
)
def test_the_rubric_is_the_lexicon_that_eval_judges_by(
    load: Callable[..., LoadedRecipe], tmp_path: Path, values: str, rubric: str
) -> None:
    recipe = load(*values.format(folder=tmp_path).split()).recipe
    spec = registry.STAGES["reward"]
    assert spec.config(recipe).rubric == rubric
    assert spec.keyed(recipe)["rubric"] == rubric


def test_a_lexicon_that_is_a_file_enters_the_key(load: Callable[..., LoadedRecipe]) -> None:
    spec = registry.STAGES["reward"]
    assert spec.files(load("eval.judge=my.yaml").recipe) == {"eval.judge": Path("my.yaml")}
    assert spec.files(load("reward.rubric=my.yaml").recipe) == {"reward.rubric": Path("my.yaml")}
    assert spec.files(load("reward.rubric=e2e").recipe) == {}


def test_a_folder_is_no_rubric(load: Callable[..., LoadedRecipe], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"reward\.rubric: must be a slot lexicon, and .* is a folder"):
        load(f"reward.rubric={tmp_path}")


# --- The stage ---


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    """Held-out rankings of venues; training rankings of random words."""
    base = tiny.base_artifact(tmp_path / "base")
    rank = tiny.rank_artifact(tmp_path / "rank")
    rows = [row for row in rank.jsonl("rankings.jsonl") if row["split"] == "train"]
    rows += [
        row | {"prompt": tiny.user(f"name[{name}], food[Thai]"), "completions": texts, "split": "eval"}
        for row, name in zip(rows, ["Blue Fox", "Amber Fox"], strict=False)
        for texts in [[f"{name}: Thai.", name, f"{name}: Greek."]]
    ]
    rank.file("rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "rank": rank,
    }


def test_the_stage_writes_and_prints_the_table(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., tuple[Any, Any]]
) -> None:
    config = RewardConfig(lora=tiny.LORA, max_length=60, trainer={"max_steps": 1})
    with_rubric, without = tmp_path / "with", tmp_path / "without"
    for out, rubric in ((with_rubric, "venues"), (without, "none")):
        out.mkdir()
        ctx, notes = training_context(state=out.name)
        stage.run(replace(config, rubric=rubric), inputs, out, ctx)
        assert sum("by kind of fault: missing " in text for text in notes.lines) == (rubric != "none")
    quality = RewardQuality.read(Artifact("reward", with_rubric, "reward"))
    assert [(row.kind, row.pairs) for row in quality.by_fault] == [
        ("missing", 2),
        ("wrong", 2),
        ("invented", 0),
        ("repeated", 0),
    ]
    plain = json.loads((without / "quality.json").read_text())
    described = json.loads((with_rubric / "quality.json").read_text())
    assert "by_fault" in described
    del described["by_fault"]
    assert described == plain, "the rubric changes neither the metrics nor the gate"


def test_a_held_out_prompt_without_facts_stops_the_stage_before_training(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., tuple[Any, Any]]
) -> None:
    inputs["rank"] = tiny.rank_artifact(tmp_path / "words")
    ctx, notes = training_context()
    (tmp_path / "out").mkdir()
    config = RewardConfig(lora=tiny.LORA, max_length=60, rubric="venues")
    with pytest.raises(DataError, match="not a meaning representation"):
        stage.run(config, inputs, tmp_path / "out", ctx)
    assert notes.logged == []
