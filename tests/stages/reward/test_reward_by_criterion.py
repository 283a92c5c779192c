"""Rankings by several criteria from the tables to a reward model for each."""

import json

import criteria_tables
import numpy as np
import pytest
import tiny

from data.schema import read_rankings_file
from pipeline.config.data import CriteriaConfig, DataConfig, RankingTableConfig
from pipeline.config.rank import RankConfig
from pipeline.config.reward import GateConfig, RewardConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages import data, rank
from stages.criteria import criteria_of, of_criterion, part
from stages.reward import stage
from stages.reward.artifact import RewardQuality
from stages.scoring import reward_model
from stages.scoring.load import as_artifact

PROMPT_COUNT = 15
PROMPTS = [f"{word}{i}" for i, word in enumerate(tiny.words(PROMPT_COUNT, seed=5))]
TRAINER = {"per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 3e-2, "save_steps": 2}
CHECKS = ("texts_with_control_tokens", "answers_with_stop_token")
FILES = ("adapter/adapter_model.safetensors", "head.safetensors", "reward.json")


def run_data(criteria, folder, context):
    tables = {name: RankingTableConfig(**table) for name, table in criteria.items()}
    rankings = CriteriaConfig(criteria=tables) if len(tables) > 1 else next(iter(tables.values()))
    folder.mkdir()
    metrics = data.run(DataConfig(rankings=rankings, eval_fraction=0.3), {}, folder, context())
    return Artifact("data", folder, "data", metrics)


def run_rank(data_artifact, folder, context):
    folder.mkdir()
    metrics = rank.run(RankConfig(), {"data": data_artifact}, folder, context())
    return Artifact("rank", folder, "rank", metrics)


@pytest.fixture
def criteria(tmp_path):
    return criteria_tables.write(tmp_path, PROMPTS)


def make_inputs(criteria, tmp_path, context):
    base = tiny.base_artifact(tmp_path / "base")
    read = run_data(criteria, tmp_path / "data", context)
    return {
        "base": base,
        "data": read,
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "rank": run_rank(read, tmp_path / "rank", context),
    }


@pytest.fixture
def inputs(criteria, tmp_path, context):
    return make_inputs(criteria, tmp_path, context)


def run(inputs, out, ctx, **values):
    config = RewardConfig(**({"lora": tiny.LORA, "max_length": 40, "trainer": TRAINER, "gate": None} | values))
    out.mkdir()
    metrics = stage.run(config, inputs, out, ctx)
    return Artifact("reward", out, "reward", metrics)


def test_every_criterion_is_read_counted_and_measured_apart(inputs, criteria, tmp_path, context):
    read, ranked = inputs["data"], inputs["rank"]
    rows = list(read_rankings_file(read.file("rankings.jsonl")))
    assert [row.criterion for row in rows] == ["more"] * 30 + ["less"] * 30
    assert criteria_of(read) == criteria_of(ranked) == ["more", "less"]
    assert read.metrics["rankings_train"] + read.metrics["rankings_eval"] == 60
    prompts = list(read.jsonl("prompts.jsonl"))
    assert len(prompts) == PROMPT_COUNT
    assert {row["table"] for row in prompts} == {"rankings.criteria.more"}
    for name in criteria_tables.NAMES:
        alone = run_data({name: criteria[name]}, tmp_path / f"data {name}", context)
        single = run_rank(alone, tmp_path / f"rank {name}", context)
        assert "criterion" not in (alone.path / "rankings.jsonl").read_text()
        own = {key: value for key, value in part(read, name).metrics.items() if "source" not in key}
        expected = {key: value for key, value in alone.metrics.items() if key in own}
        assert own == expected
        assert own["rankings_train"] + own["rankings_eval"] == 30
        assert part(ranked, name).metrics == single.metrics
        assert part(ranked, name).json("agreement.json") == single.json("agreement.json")
        assert single.metrics["agreement"] == 1.0
        assert single.metrics["self_consistency"] is None, "two criteria are no repeats"


def test_a_row_that_is_left_out_is_counted_in_its_criterion(criteria, tmp_path, context):
    with (tmp_path / "less.csv").open("a") as file:
        file.write("zzz,a.,,,1,,,ann\n")
    read = run_data(criteria, tmp_path / "data", context)
    name = "dropped_rankings/fewer than 2 completions left"
    assert (read.metrics[name], read.metrics[f"less/{name}"], f"more/{name}" in read.metrics) == (1, 1, False)
    assert (read.metrics["more/read_rankings"], read.metrics["less/read_rankings"]) == (30, 31)
    assert read.metrics["read_rankings"] == 61
    assert {row["table"] for row in read.jsonl("dropped.jsonl")} == {"rankings.criteria.less"}


def without_checks(metrics):
    """Without the counts of texts, which are of all tables together."""
    return {name: value for name, value in metrics.items() if name not in CHECKS}


def test_each_criterion_has_the_reward_model_of_its_rankings_alone(
    inputs, criteria, tmp_path, training_context, context
):
    ctx, notes = training_context(seed=5)
    trained = run(inputs, tmp_path / "both", ctx, gate=GateConfig(above_length=False, max_ece=1))
    assert criteria_of(trained) == ["more", "less"]
    for name in criteria_tables.NAMES:
        alone = run_data({name: criteria[name]}, tmp_path / f"data {name}", context)
        ranked = run_rank(alone, tmp_path / f"rank {name}", context)
        single = run(
            inputs | {"data": alone, "rank": ranked},
            tmp_path / f"only {name}",
            training_context(5, state=name)[0],
            gate=GateConfig(above_length=False, max_ece=1),
        )
        own = part(trained, name)
        for file in FILES[:2]:
            assert own.file(file).read_bytes() == single.file(file).read_bytes(), file
        assert own.json("reward.json") == single.json("reward.json") | {"criterion": name}
        quality = single.json("quality.json")
        assert own.json("quality.json") == quality | {"metrics": without_checks(quality["metrics"])}
        assert own.metrics == without_checks(single.metrics)
        assert RewardQuality.read(own).held_out.agreement == 1.0
        assert trained.metrics[f"{name}/unfit"] == own.json("quality.json")["unfit"]
    assert trained.metrics["rankings"] == sum(trained.metrics[f"{name}/rankings"] for name in ("more", "less"))
    assert trained.metrics["completions"] == trained.metrics["more/completions"], "the answers are the same"
    steps = [step for step, _ in notes.logged]
    assert steps == sorted(steps), "one criterion's steps follow on the other's"
    assert {key for _, logged in notes.logged for key in logged} >= {"more/loss", "less/loss", "less/eval_accuracy"}


def test_each_adapter_has_learned_its_own_criterion(tmp_path, training_context, context):
    prompts = [f"{word}{i}" for i, word in enumerate(tiny.words(24, seed=5))]
    inputs = make_inputs(criteria_tables.write(tmp_path, prompts), tmp_path, context)
    trainer = TRAINER | {"num_train_epochs": 8, "learning_rate": 1e-2}
    trained = run(inputs, tmp_path / "out", training_context()[0], trainer=trainer)
    codec = tiny.codec()
    rows = [codec.prompt(tiny.user("b7")) + codec.completion("a" + "z" * n + ".") for n in range(5)]
    order = {}
    for name in criteria_tables.NAMES:
        model = reward_model.load_reward(part(trained, name), inputs["base"], "cpu")
        assert model.roles == (f"reward_{name}",)
        assert trained.metrics[f"{name}/eval_accuracy"] > 0.8
        order[name] = np.argsort(reward_model.score_rows(model, rows, 8, "cpu").numpy())[[0, -1]].tolist()
    assert order["more"][0] < order["more"][1]
    assert order["less"][0] > order["less"][1]


@pytest.mark.parametrize("after", ["more/loss", "less/loss"])
def test_resume_is_exact_in_every_criterion(inputs, tmp_path, training_context, after):
    """Killed at a step of the first criterion or of the second, after a checkpoint."""
    whole = run(inputs, tmp_path / "whole out", training_context(state="whole")[0])
    ctx, notes = training_context(state="cut")
    log, seen = notes.log, []

    def die(step, **values):
        log(step, **values)
        seen.extend(name for name in values if name == after)
        if len(seen) == 3:
            raise KeyboardInterrupt

    notes.log = die
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "cut out", ctx)
    ctx, notes = training_context(state="cut")
    resumed = run(inputs, tmp_path / "resumed", ctx)
    logged = [name for _, values in notes.logged for name in values]
    assert ("more/loss" in logged) == (after == "more/loss"), "a finished criterion is not trained again"
    assert resumed.metrics == whole.metrics
    for name in criteria_tables.NAMES:
        for file in (*FILES, "quality.json"):
            assert resumed.file(f"{name}/{file}").read_bytes() == whole.file(f"{name}/{file}").read_bytes(), file


def test_nothing_uses_the_first_criterion_silently(tmp_path):
    base = tiny.base_artifact(tmp_path / "base")
    trained = criteria_tables.reward_artifact(tmp_path / "out", base)
    for source in (trained, trained.path):
        with pytest.raises(StageError, match="a reward model for each criterion") as error:
            as_artifact(source)
        assert "more, less" in error.value.hint
    with pytest.raises(StageError, match="several criteria, and none of them is named"):
        of_criterion(trained, None, "--criterion")
    with pytest.raises(StageError, match="have no criterion fluency") as error:
        of_criterion(trained, "fluency", "--criterion")
    assert error.value.hint == "set --criterion to one of more, less"
    with pytest.raises(StageError, match="the rankings have no criteria, and --criterion names more"):
        of_criterion(base, "more", "--criterion")
    assert as_artifact(str(trained.path / "less")).path == trained.path / "less"
    assert json.loads(trained.file("criteria.json").read_text()) == ["more", "less"]
