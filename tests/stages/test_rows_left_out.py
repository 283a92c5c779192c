"""Whatever a stage leaves out is counted, printed in one line with the key to change, and in the report."""

import json
import re

import pytest
import tiny

from data.schema import write_jsonl
from pipeline.config.collect import CollectConfig
from pipeline.config.evaluate import EvalConfig
from pipeline.config.ppo import PPOConfig
from pipeline.config.rank import RankConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError
from stages import collect, rank
from stages.eval import stage as evaluation
from stages.eval.artifact import read_samples
from stages.left_out import LeftOut, losses
from stages.ppo import stage as ppo

LONG = "q" * 30


@pytest.fixture
def inputs(tmp_path):
    """A run up to PPO; of each split, one prompt and its demonstration are much longer than the others."""
    base = tiny.base_artifact(tmp_path / "base")
    data = tiny.data_artifact(tmp_path / "data")
    for name in ("prompts.jsonl", "demonstrations.jsonl"):
        rows = list(data.jsonl(name))
        extra = [
            {"prompt": tiny.user(split + LONG), "completion": "a.", "split": split} for split in ("train", "eval")
        ]
        write_jsonl(data.path / name, [*rows, *extra])
    policy = tiny.policy_artifact(tmp_path / "ppo", base, seed=5)
    point = {"update": 0, "kl": 0.0, "score": 0.0, "length": 1.0, "prompts": [], "responses": []}
    write_jsonl(policy.path / "evaluations.jsonl", [point])
    return {
        "base": base,
        "data": data,
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "reward": tiny.reward_artifact(tmp_path / "reward", base),
        "ppo": policy,
    }


def run_collect(inputs, out, ctx, limit):
    config = CollectConfig(num_completions=2, response_length=4, max_prompt_length=limit)
    return collect.run(config, {name: inputs[name] for name in ("base", "data", "sft")}, out, ctx)


def run_ppo(inputs, out, ctx, limit):
    config = PPOConfig(
        total_episodes=8,
        batch_size=8,
        num_mini_batches=1,
        num_ppo_epochs=1,
        max_prompt_length=limit,
        response_length=4,
        eval_updates=0,
        ptx_coef=0.1,
    )
    return ppo.run(config, {name: inputs[name] for name in ("base", "data", "sft", "reward")}, out, ctx)


def run_eval(inputs, out, ctx, limit):
    config = EvalConfig(max_prompt_length=limit, response_length=4, best_of_n=None, bootstrap=20)
    return evaluation.run(config, inputs, out, ctx)


STAGES = {"collect": run_collect, "ppo": run_ppo, "eval": run_eval}
LINES = {
    "collect": {("", "prompts", 13), ("eval_", "prompts", 5)},
    "ppo": {("", "prompts", 13), ("eval_", "prompts", 5), ("ptx_", "demonstrations", 13)},
    "eval": {("eval_", "prompts", 5), ("eval_", "demonstrations", 5)},
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_prints_and_counts_each_kind_of_row_that_is_too_long(stage, inputs, tmp_path, training_context):
    ctx, notes = training_context()
    (tmp_path / "out").mkdir()
    metrics = STAGES[stage](inputs, tmp_path / "out", ctx, 20)
    lines = [line for line in notes.lines if "left out" in line]
    assert len(lines) == len(LINES[stage])
    assert all(line.startswith(f"{stage}: 1 of ") for line in lines)
    assert all(re.search(rf"longer than {stage}\.max_prompt_length.* = \d+ tokens", line) for line in lines)
    assert all(re.search(r"\(the longest has \d\d\)", line) for line in lines)
    assert {(loss.what, loss.read, loss.count) for loss in losses(metrics)} == {
        (LeftOut(rows, prefix, "x.y", 1).what, read, 1) for prefix, rows, read in LINES[stage]
    }
    longest = max(len(tiny.codec().prompt(tiny.user(split + LONG))) for split in ("train", "eval"))
    assert metrics["eval_longest_prompts"] in (longest - 1, longest)


@pytest.mark.parametrize("stage", STAGES)
def test_when_every_row_is_too_long_that_is_the_error(stage, inputs, tmp_path, training_context):
    ctx, _ = training_context(describe=lambda key: f"recipe.yaml:7 ({key})")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=rf"longer than {stage}\.max_prompt_length = 1 tokens") as raised:
        STAGES[stage](inputs, tmp_path / "out", ctx, 1)
    assert re.match(rf"{stage}: (\d+) of \1 (training|held-out) prompts left out", raised.value.what)
    assert raised.value.where == f"recipe.yaml:7 ({stage}.max_prompt_length)"
    longest = int(re.search(r"the longest has (\d+)", raised.value.what)[1])
    assert raised.value.hint == f"raise {stage}.max_prompt_length to {-(-longest // 8) * 8}"


def test_a_table_without_any_ranking_is_refused_by_name(tmp_path, training_context):
    data = Artifact("data", tmp_path, "data")
    (tmp_path / "rankings.jsonl").touch()
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="there are no rankings"):
        rank.run(RankConfig(source="data"), {"data": data}, tmp_path / "out", training_context()[0])


def test_answers_that_are_cut_are_marked_in_the_samples(inputs, tmp_path, training_context):
    (tmp_path / "out").mkdir()
    run_eval(inputs, tmp_path / "out", training_context()[0], 20)
    artifact = Artifact("eval", tmp_path / "out", "")
    samples = read_samples(artifact)
    models = json.loads((artifact.path / "eval.json").read_text())["models"]
    assert {finished for sample in samples for finished in sample.finished.values()} == {True, False}
    for name, measured in models.items():
        assert measured["ended"] == pytest.approx(sum(sample.finished[name] for sample in samples) / len(samples))
        for sample in samples:
            assert sample.shown(name).endswith(" … (cut)") != sample.finished[name]
            assert sample.shown(name).startswith(sample.answers[name].rstrip())


def test_rows_that_are_all_used_have_no_line():
    left_out = LeftOut("prompts", "", "ppo.max_prompt_length", 5)
    assert left_out.fits(5)
    assert left_out.line() == left_out.describe() == left_out.hint() == ""
    assert left_out.metrics() == {"read_prompts": 1, "dropped_prompts": 0}
    empty = LeftOut("prompts", "eval_", "eval.max_prompt_length", 5).error(str, "data", "add some")
    assert (empty.what, empty.where, empty.hint) == ("eval: there are no held-out prompts", "data", "add some")
