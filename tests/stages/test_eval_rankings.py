"""`data.eval_rankings` and `data.exclude` in the `data` stage, and in the stages that read tables of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from data.schema import Ranking, prompt_key, write_jsonl
from pipeline.config.data import (
    ContaminationConfig,
    DataConfig,
    PromptTableConfig,
    RankingTableConfig,
    TableConfig,
    TaskConfig,
)
from pipeline.config.reward import PretrainOnConfig, RewardConfig
from pipeline.config.sft import LoRAConfig
from pipeline.engine.stage import Artifact, RunContext
from pipeline.errors import DataError, RecipeError
from stages import contamination, data
from stages.left_out import losses
from stages.reward import stage as reward
from stages.reward.artifact import RewardQuality

LONG = "please name every river that flows through the old town, number"


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(prompt: str, annotator: str = "ann", **cells: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "yes", "rejected": "no", "annotator": annotator, **cells}


def rankings(tmp_path: Path, name: str, rows: list[dict[str, Any]], **values: Any) -> RankingTableConfig:
    return RankingTableConfig(path=table(tmp_path / name, rows), format="pairs", **values)


@pytest.fixture
def run(tmp_path: Path, training_context: Any) -> Callable[..., tuple[dict[str, Any], Artifact, list[str]]]:
    """Runs the data stage. Returns its metrics, its artifact and the lines that it printed."""

    def make(**values: Any) -> tuple[dict[str, Any], Artifact, list[str]]:
        out = tmp_path / "out"
        out.mkdir()
        ctx, notes = training_context()
        metrics = data.run(DataConfig(**{"eval_fraction": 0.3, **values}), {}, out, ctx)
        return metrics, Artifact("data", out, ""), notes.lines

    return make


def test_all_rankings_of_the_other_source_are_kept_and_none_is_trained_on(tmp_path: Path, run: Any) -> None:
    ours = rankings(tmp_path, "ours.jsonl", [pair(f"{LONG} {i}") for i in range(40)])
    rows = [pair(f"other {i}", who) for i in range(20) for who in ("ann", "bob")]
    other = rankings(tmp_path, "other.jsonl", [*rows, pair("gone", chosen=""), pair("")], human=False)
    metrics, artifact, lines = run(rankings=ours, eval_rankings=other, system="Be kind.")
    written = [Ranking(**row) for row in artifact.jsonl("eval_rankings.jsonl")]
    assert len(written) == metrics["eval_rankings"] == 40
    assert {row.split for row in written} == {"eval"}
    assert {row.prompt[0]["content"] for row in written} == {"Be kind."}
    assert (metrics["eval_rankings_prompts"], metrics["eval_rankings_annotators"]) == (20, 2)
    assert metrics["eval_rankings_human"] is False
    assert metrics["human"] is True
    assert metrics["read_eval_rankings"] == 42
    assert metrics["dropped_eval_rankings"] == 2
    assert metrics["dropped_eval_rankings/fewer than 2 completions left"] == 1
    assert metrics["dropped_eval_rankings/empty prompt"] == 1
    assert metrics["rankings_train"] + metrics["rankings_eval"] == 40
    assert any(line.startswith("data.eval_rankings: 2 of 42 rankings left out") for line in lines)
    dropped = [row for row in artifact.jsonl("dropped.jsonl") if row["table"] == "eval_rankings"]
    assert {row["row"] for row in dropped} == {41, 42}
    kept = {prompt_key(row["prompt"]) for row in artifact.jsonl("prompts.jsonl")}
    assert not kept & {prompt_key(row.prompt) for row in written}


def test_prompts_that_are_trained_on_are_counted_by_table(tmp_path: Path, run: Any) -> None:
    ours = rankings(tmp_path, "ours.jsonl", [pair(f"{LONG} {i} of them") for i in range(40)])
    shown = [{"prompt": f"what of {LONG} 3 of them in spring", "completion": "many"}]
    shown += [{"prompt": f"something else {i}", "completion": "it"} for i in range(20)]
    demonstrations = TableConfig(path=table(tmp_path / "shown.jsonl", shown))
    asked = [{"prompt": f"another question {i}"} for i in range(20)]
    prompts = PromptTableConfig(path=table(tmp_path / "asked.jsonl", asked))
    other = rankings(
        tmp_path,
        "other.jsonl",
        [pair(f"{LONG.upper()} {i} of them") for i in range(30, 50)] + [pair(f"{LONG} 3 of them")],
    )
    metrics, artifact, lines = run(
        rankings=ours, eval_rankings=other, demonstrations=demonstrations, prompts=prompts
    )
    training = [row["prompt"][0]["content"] for row in artifact.jsonl("rankings.jsonl") if row["split"] == "train"]
    expected = sum(f"{LONG} {i} of them" in training for i in [*range(30, 40), 3])
    assert metrics["eval_rankings_in_rankings/exact"] == expected > 0
    split = next(
        row["split"] for row in artifact.jsonl("demonstrations.jsonl") if "in spring" in row["prompt"][0]["content"]
    )
    assert metrics.get("eval_rankings_in_demonstrations/exact", 0) == (split == "train")
    assert not any(name.startswith("eval_rankings_in_prompts") for name in metrics)
    [line] = [line for line in lines if "occur in the rankings" in line]
    assert line.startswith(f"warning: of the 21 prompts of data.eval_rankings, {expected} occur")


@pytest.mark.parametrize("exact", ["report", "drop", "ignore"])
def test_the_check_follows_the_recipes_definition(tmp_path: Path, run: Any, exact: str) -> None:
    ours = rankings(tmp_path, "ours.jsonl", [pair(f"{LONG} {i}") for i in range(40)])
    definition = ContaminationConfig(exact=exact, near="ignore")  # type: ignore[arg-type]
    metrics, _, _ = run(rankings=ours, eval_rankings=ours, contamination=definition)
    assert metrics["eval_rankings"] == 40
    assert metrics.get("eval_rankings_in_rankings/exact") == (
        None if exact == "ignore" else metrics["rankings_train"]
    )


def test_people_who_are_not_told_apart_are_refused_there_too(tmp_path: Path, run: Any) -> None:
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b", "who": who} for i in range(20) for who in "xy"]
    ours = rankings(tmp_path, "ours.jsonl", [pair(f"{LONG} {i}") for i in range(40)])
    with pytest.raises(DataError, match="people are not told apart") as error:
        run(rankings=ours, eval_rankings=rankings(tmp_path, "other.jsonl", rows))
    assert "data.eval_rankings.columns: {annotator: who}" in error.value.hint


@pytest.mark.parametrize("as_list", [True, False])
def test_excluded_prompts_are_left_out_of_every_table(tmp_path: Path, run: Any, as_list: bool) -> None:
    def ask(number: int) -> str:
        return f"{LONG} {number}"

    ours = rankings(tmp_path, "ours.jsonl", [pair(ask(i)) for i in range(40)])
    other = rankings(tmp_path, "other.jsonl", [pair(ask(i)) for i in range(20)])
    shown = [{"prompt": ask(i), "completion": "many"} for i in range(60)]
    demonstrations = TableConfig(path=table(tmp_path / "shown.jsonl", shown))
    prompts = PromptTableConfig(path=table(tmp_path / "asked.jsonl", [{"prompt": ask(i)} for i in range(80)]))
    first = table(
        tmp_path / "first.jsonl", [{"prompt": f"  {ask(5).upper()}"}, {"prompt": ask(50)}, {"prompt": ""}]
    )
    second = table(tmp_path / "second.csv.jsonl", [{"prompt": ask(70)}, {"prompt": "never asked"}])
    renamed = table(tmp_path / "all.jsonl", [{"q": ask(i)} for i in (5, 50, 70)] + [{"q": "never asked"}])
    exclude = [first, second] if as_list else TableConfig(path=renamed, columns={"prompt": "q"})
    metrics, artifact, lines = run(
        rankings=ours,
        eval_rankings=other,
        demonstrations=demonstrations,
        prompts=prompts,
        exclude=exclude,
    )
    counts = {"demonstrations": 2, "rankings": 1, "eval_rankings": 1, "prompts": 3}
    assert {name: metrics[f"dropped_{name}/excluded prompt"] for name in counts} == counts
    assert {name: metrics[f"dropped_{name}"] for name in counts} == counts
    gone = {ask(i) for i in (5, 50, 70)}
    for name in counts:
        texts = {row["prompt"][0]["content"] for row in artifact.jsonl(f"{name}.jsonl")}
        assert texts
        assert not texts & gone
    assert (metrics["excluded_prompts"], metrics["excluded_prompts_met"]) == (4, 3)
    assert "data.exclude: 3 of its 4 prompts occur in the tables, and are left out" in lines
    assert len(list(artifact.jsonl("excluded.jsonl"))) == 4
    places = {(row["table"], row["row"]) for row in artifact.jsonl("dropped.jsonl")}
    assert {("demonstrations", 6), ("demonstrations", 51), ("prompts", 71), ("rankings", 6)} <= places


def test_generated_demonstrations_are_excluded_too(tmp_path: Path, run: Any) -> None:
    task = TaskConfig(task="venues", size=30)
    metrics, artifact, _ = run(demonstrations=task)
    first = next(artifact.jsonl("demonstrations.jsonl"))["prompt"][-1]["content"]
    (tmp_path / "out").rename(tmp_path / "before")
    exclude = [table(tmp_path / "x.jsonl", [{"prompt": first}])]
    after, artifact, _ = run(demonstrations=task, exclude=exclude)
    total = metrics["demonstrations_train"] + metrics["demonstrations_eval"]
    left = after["demonstrations_train"] + after["demonstrations_eval"]
    assert total - left == after["dropped_demonstrations/excluded prompt"] >= 1
    assert first not in {row["prompt"][-1]["content"] for row in artifact.jsonl("prompts.jsonl")}


@pytest.mark.parametrize("which", ["rankings", "eval_rankings"])
def test_a_table_of_which_nothing_is_left_is_an_error(tmp_path: Path, run: Any, which: str) -> None:
    ours = rankings(tmp_path, "ours.jsonl", [pair(f"{LONG} {i}") for i in range(40)])
    other = rankings(tmp_path, "other.jsonl", [pair("gone")])
    tables = {"rankings": ours, "eval_rankings": other} if which == "eval_rankings" else {"rankings": other}
    prompts = PromptTableConfig(path=table(tmp_path / "asked.jsonl", [{"prompt": f"q{i}"} for i in range(40)]))
    with pytest.raises(DataError, match=rf"no ranking of data\.{which} is left: 1 x excluded prompt") as error:
        run(**tables, prompts=prompts, exclude=[table(tmp_path / "x.jsonl", [{"prompt": "gone"}])])
    assert error.value.hint == "data.exclude lists its prompt"


def test_a_table_to_exclude_without_prompts_is_an_error(tmp_path: Path, run: Any) -> None:
    ours = rankings(tmp_path, "ours.jsonl", [pair(f"{LONG} {i}") for i in range(40)])
    with pytest.raises(RecipeError, match=r"data\.exclude\[0\]: the table has no column 'prompt'") as error:
        run(rankings=ours, exclude=[table(tmp_path / "x.jsonl", [{"question": "gone"}])])
    assert error.value.hint == "set data.exclude: {path: FILE, columns: {prompt: question}}"


def test_pairs_of_a_corpus_are_excluded(tmp_path: Path, training_context: Any) -> None:
    data = tiny.data_artifact(tmp_path / "data")
    write_jsonl(data.path / "excluded.jsonl", [{"group": "gone with it"}])
    documents = [("Gone  with it", "x"), ("kept", "y"), ("gone with it",)]
    kept, metrics = contamination.check_corpus(documents, data, training_context()[0])
    assert kept == documents[1:]
    assert metrics["corpus_dropped_documents/excluded prompt"] == 1
    assert [loss.reason for loss in losses(metrics)] == ["excluded prompt"]


REWARD = {"max_length": 60, "gate": None, "lora": LoRAConfig(r=2), "ensemble": 2, "trainer": {"max_steps": 2}}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    return {
        "base": tiny.base_artifact(tmp_path / "base"),
        "data": tiny.data_artifact(tmp_path / "data"),
        "rank": tiny.rank_artifact(tmp_path / "rank"),
    }


def train(
    inputs: dict[str, Artifact], out: Path, ctx: RunContext, **values: Any
) -> tuple[Artifact, dict[str, Any]]:
    out.mkdir()
    metrics = reward.run(RewardConfig(**{**REWARD, **values}), inputs, out, ctx)  # type: ignore[arg-type]
    return Artifact("reward", out, "reward"), metrics


def other_rankings(inputs: dict[str, Artifact], rows: list[Ranking]) -> None:
    write_jsonl(inputs["data"].path / "eval_rankings.jsonl", rows)


def ranked(word: str, ranks: list[int], answers: tuple[str, str] = ("zzz.", "a.")) -> Ranking:
    return Ranking(tiny.user(word), list(answers), ranks, "cem", human=True, split="eval")


def test_the_reward_model_is_evaluated_on_them_by_member(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Any
) -> None:
    before, plain = train(inputs, tmp_path / "before", training_context()[0])
    rows = [ranked(f"word{i}", [1, 2]) for i in range(6)] + [ranked("tied", [1, 1]), ranked("l" * 90, [1, 2])]
    other_rankings(inputs, rows)
    ctx, notes = training_context()
    after, metrics = train(inputs, tmp_path / "after", ctx)
    # What is trained, measured on held-out rankings and written is the same as without them.
    assert {name: value for name, value in metrics.items() if not name.startswith("transfer_")} == plain
    files = {file.name for file in after.path.iterdir()} - {file.name for file in before.path.iterdir()}
    assert files == {"eval_rankings.json"}
    assert (after.path / "quality.json").read_bytes() == (before.path / "quality.json").read_bytes()
    quality = RewardQuality.read(after).transfer
    assert quality is not None
    assert RewardQuality.read(before).transfer is None
    assert (quality.pairs, quality.prompts) == (6, 6)
    assert metrics["transfer_accuracy"] == quality.accuracy
    assert len(quality.member_accuracy) == 2
    assert quality.length_accuracy == 1.0  # the better answer is the longer one
    assert metrics["transfer_read_rankings"] == 8
    assert metrics["transfer_dropped_rankings/all answers tied"] == 1
    assert metrics["transfer_dropped_rankings/longer than max_length"] == 1
    assert (
        sorted(loss.what for loss in losses(metrics) if "eval_rankings" in loss.what)
        == ["rankings of data.eval_rankings"] * 2
    )
    assert any(line.startswith("of 6 pairs of data.eval_rankings the reward model orders") for line in notes.lines)


def test_rankings_to_evaluate_on_without_a_strict_pair_are_refused_before_training(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Any
) -> None:
    other_rankings(inputs, [ranked("tied", [1, 1])])
    ctx, notes = training_context()
    with pytest.raises(DataError, match=r"1 of 1 rankings of data\.eval_rankings left out: all answers tied"):
        train(inputs, tmp_path / "out", ctx)
    assert not notes.logged


def test_a_pretraining_table_knows_excluded_prompts_and_the_other_source(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Any
) -> None:
    other_rankings(inputs, [ranked("seen", [1, 2])])
    write_jsonl(inputs["data"].path / "excluded.jsonl", [{"group": "gone"}])
    rows = [pair(f"row {i}", chosen="zz.", rejected="a.") for i in range(6)] + [pair("seen"), pair("Gone")]
    source = PretrainOnConfig(path=table(tmp_path / "pre.jsonl", rows), format="pairs", trainer={"max_steps": 1})
    ctx, notes = training_context()
    _, metrics = train(inputs, tmp_path / "out", ctx, pretrain_on=source)
    assert metrics["pretraining_rankings"] == 7
    assert metrics["pretraining_dropped_rows/excluded prompt"] == 1
    assert any(
        "1 prompts of data.eval_rankings have rankings in reward.pretrain_on" in line for line in notes.lines
    )
