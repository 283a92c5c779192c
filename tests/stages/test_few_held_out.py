"""Too few held-out prompts are a warning before anything is trained: in `check`, in `plan` and in `data`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_fakes import FakeStages
from typer.testing import CliRunner

from data.held_out import FEW, warnings
from data.schema import prompt_key
from data.splits import split_of_prompt
from pipeline.cli import inspect, run  # noqa: F401 (registers commands)
from pipeline.cli.app import app
from pipeline.config.data import DataConfig, RankingTableConfig, TableConfig
from pipeline.config.load import LoadedRecipe
from pipeline.engine.stage import RunContext
from stages import check  # noqa: F401 (registers checks)
from stages.data import run as run_data

ONLY = "warning: only {count} held-out prompts {purpose}: results on fewer than 30 decide nothing"


def tables(folder: Path, demonstrations: int, rankings: int) -> DataConfig:
    """Two rankings of each of the last `rankings` prompts of `demonstrations`."""
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(demonstrations)]
    pairs = [
        {"prompt": row["prompt"], "chosen": "x", "rejected": "y", "annotator": name}
        for row in rows[demonstrations - rankings :]
        for name in ("ann", "bob")
    ]
    for name, content in (("d", rows), ("r", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return DataConfig(
        demonstrations=TableConfig(path=str(folder / "d.jsonl")),
        rankings=RankingTableConfig(path=str(folder / "r.jsonl"), format="pairs"),
    )


def held_out(count: int, first: int = 0, fraction: float = 0.1) -> int:
    """How many of the prompts `question first` to `question count - 1` are held out."""
    prompts = [[{"role": "user", "content": f"question {i}"}] for i in range(first, count)]
    assert len({prompt_key(prompt) for prompt in prompts}) == count - first
    return sum(split_of_prompt(prompt, fraction) == "eval" for prompt in prompts)


@pytest.mark.parametrize(("demonstrations", "rankings"), [(60, 30), (600, 60), (800, 800)])
def test_the_data_stage_check_and_plan_count_the_same_prompts(
    tmp_path: Path,
    training_context: Callable[..., tuple[RunContext, object]],
    load: Callable[..., LoadedRecipe],
    demonstrations: int,
    rankings: int,
) -> None:
    config = tables(tmp_path, demonstrations, rankings)
    evaluated, ranked = held_out(demonstrations), held_out(demonstrations, demonstrations - rankings)
    expected = [
        ONLY.format(count=count, purpose=purpose)
        for count, purpose in ((evaluated, "to evaluate on"), (ranked, "with rankings"))
        if count < FEW
    ]
    expected = [line.replace("only 1 held-out prompts", "only 1 held-out prompt") for line in expected]
    assert len(expected) == {60: 2, 600: 1, 800: 0}[demonstrations]
    ctx, notes = training_context()
    (tmp_path / "out").mkdir()
    metrics = run_data(config, {}, tmp_path / "out", ctx)
    assert (metrics["prompts_eval"], metrics["ranked_prompts_eval"]) == (evaluated, ranked)
    said = [line for line in notes.lines if "held-out" in line]  # type: ignore[attr-defined]
    assert [line.partition(" (")[0] for line in said] == expected

    recipe = tmp_path / "own.yaml"
    recipe.write_text(
        "name: own\ndevice: cpu\nbase: {pretrain: {corpus: {task: venues, size: 10}}}\nrank: {source: data}\n"
        "ppo: {eval_updates: 0, kl: {target: 6}}\n"
        f"data:\n  demonstrations: {{path: {tmp_path}/d.jsonl}}\n"
        f"  rankings: {{path: {tmp_path}/r.jsonl, format: pairs}}\n"
    )
    for command in ("check", "plan"):
        result = CliRunner().invoke(app, [command, "--recipe", str(recipe)])
        assert result.exit_code == 0, result.output
        printed = [line for line in result.output.splitlines() if line.startswith("warning: only")]
        assert [line.partition(" (")[0] for line in printed] == expected, command


def test_plan_reads_the_finished_data_stage(
    recipe_file: Path, stages: FakeStages, load: Callable[..., LoadedRecipe]
) -> None:
    def data(config: object, inputs: object, out: Path, ctx: object) -> dict[str, int]:
        (out / "x").touch()
        return {"prompts_eval": 7}

    stages.does["data"] = data
    runner = CliRunner()
    assert "warning: only" not in runner.invoke(app, ["plan", "--recipe", "small.yaml"]).output, "generated prompts"
    runner.invoke(app, ["run", "data", "--recipe", "small.yaml"])
    output = runner.invoke(app, ["plan", "--recipe", "small.yaml"]).output
    assert ONLY.format(count=4, purpose="to evaluate on") in output  # 3 of 7 are for PPO's evaluation points
    assert ONLY.format(count=7, purpose="with rankings") in output


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ("", []),
        ("eval.num_prompts=20", ["only 20 held-out prompts to evaluate on", "raise eval.num_prompts"]),
        ("collect.eval_prompts=20", ["only 20 held-out prompts with rankings", "raise collect.eval_prompts"]),
        ("collect.eval_prompts=20 rounds=2", []),
    ],
)
def test_the_recipe_may_use_fewer_than_are_held_out(
    load: Callable[..., LoadedRecipe], sets: str, expected: list[str]
) -> None:
    lines = warnings(load(*sets.split()).recipe, 200, None)
    assert len(lines) == bool(expected)
    assert all(phrase in lines[0] for phrase in expected)


def test_prompts_of_evaluation_points_are_not_evaluated(load: Callable[..., LoadedRecipe]) -> None:
    [line] = warnings(load("ppo.eval_prompts=64").recipe, 50, None)
    assert "only 25 held-out prompts to evaluate on" in line
    assert "lower ppo.eval_prompts, which takes 25 of 50" in line
    assert warnings(load("ppo.eval_prompts=64", "ppo.eval_updates=0").recipe, 50, None) == []
