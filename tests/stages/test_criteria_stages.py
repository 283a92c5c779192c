"""Several criteria together with what else the tables of a recipe can do: consensus, exclusion, evaluation only."""

import json
from dataclasses import replace

import criteria_tables
import pytest
import tiny

from data.schema import prompt_key, read_rankings_file
from pipeline.config.data import ContaminationConfig, CriteriaConfig, DataConfig, RankingTableConfig, TableConfig
from pipeline.config.dpo import DPOConfig
from pipeline.config.rank import RankConfig
from pipeline.config.reward import RewardConfig
from pipeline.engine.registry import STAGES
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError
from stages import data, rank
from stages.artifacts import learned_file, merged_file, rankings_file
from stages.criteria import part
from stages.dpo import read_pairs
from stages.reward import forecast, stage
from stages.reward.artifact import RewardQuality

PROMPTS = [
    f"please describe {word} and the old place that has number {i}" for i, word in enumerate(tiny.words(20, seed=5))
]


@pytest.fixture
def tables(tmp_path):
    return criteria_tables.write(tmp_path, PROMPTS)


@pytest.fixture
def ran(tmp_path, context):
    """Runs `data` and `rank` with several criteria; their artifacts, of which the second reads what it declares."""

    def run(tables, name="run", **values):
        read = tmp_path / name / "data"
        ranked = tmp_path / name / "rank"
        for folder in (read, ranked):
            folder.mkdir(parents=True)
        criteria = {name: RankingTableConfig(**table) for name, table in tables.items()}
        config = DataConfig(rankings=CriteriaConfig(criteria=criteria), eval_fraction=0.3, **values)
        metrics = data.run(config, {}, read, context())
        made = Artifact("data", read, "0" * 64, metrics, STAGES["rank"].reads["data"])
        measured = rank.run(RankConfig(), {"data": made}, ranked, context())
        return Artifact("data", read, "0" * 64, metrics), Artifact("rank", ranked, "0" * 64, measured)

    return run


def test_one_criterion_may_merge_its_annotators(tables, ran):
    tables["less"]["consensus"] = "mean"
    read, ranked = ran(tables)
    more, less = (part(ranked, name) for name in criteria_tables.NAMES)
    assert merged_file(more) is None
    assert learned_file(more) == rankings_file(more)
    merged = list(read_rankings_file(learned_file(less)))
    assert len(merged) == less.metrics["merged_rankings"] == ranked.metrics["merged_rankings"] == 20
    assert {ranking.criterion for ranking in merged} == {"less"}
    assert len({prompt_key(ranking.prompt) for ranking in merged}) == 20
    assert more.metrics["rankings"] == less.metrics["rankings"] == 40
    counts = [read.metrics[f"{prefix}merged_rankings_{split}"] for prefix in ("", "less/") for split in SPLITS]
    assert counts[:2] == counts[2:]
    assert sum(counts[:2]) == 20
    assert "more/merged_rankings_train" not in read.metrics
    pairs, left_out = read_pairs({"rank": ranked}, tiny.codec(), DPOConfig(criterion="less"), "train")
    assert left_out.read == counts[0], "one ranking of a prompt is learned from"
    assert all(pair.chosen != pair.rejected for pair in pairs)


SPLITS = ("train", "eval")


def test_a_contaminated_consensus_is_counted_in_its_criterion(tables, ran):
    tables["less"]["consensus"] = "mean"
    read, _ = ran(tables, "clean")
    rows = list(read.jsonl("prompts.jsonl"))
    held_out, trained = (
        next(r["prompt"][0]["content"] for r in rows if r["split"] == s) for s in ("eval", "train")
    )
    with open(tables["less"]["path"], "a") as table:
        table.writelines(f"{trained},{held_out} z.,b.,c.,3,2,1,{who}\n" for who in ("ann", "bob"))
    drops = ContaminationConfig(exact="drop", near="ignore")
    read, ranked = ran(tables, "dirty", contamination=drops)
    reason = "contains a held-out prompt"
    assert read.metrics[f"less/dropped_rankings/{reason}"] == read.metrics[f"dropped_rankings/{reason}"] == 2
    assert read.metrics["more/dropped_rankings"] == 0
    dropped = read.metrics[f"less/dropped_merged_rankings/{reason}"]
    assert dropped == read.metrics["dropped_merged_rankings"] == 1
    assert read.metrics["less/merged_rankings_train"] == read.metrics["merged_rankings_train"]
    kept = sum(read.metrics[f"less/merged_rankings_{split}"] for split in SPLITS)
    assert part(ranked, "less").metrics["merged_rankings"] == kept
    assert {row["table"] for row in read.jsonl("dropped.jsonl")} == {
        "rankings.criteria.less",
        "merged_rankings.criteria.less",
    }


def test_figures_are_printed_of_each_table(tables, tmp_path, context):
    lines = []
    criteria = {name: RankingTableConfig(**table) for name, table in tables.items()}
    ctx = replace(context(), say=lines.append)
    data.run(DataConfig(rankings=CriteriaConfig(criteria=criteria)), {}, tmp_path, ctx)
    for name in criteria_tables.NAMES:
        own = [line for line in lines if line.startswith(f"data.rankings.criteria.{name}: ")]
        assert any("40 rows read, 40 rankings kept" in line for line in own)
        assert any("annotators agree on 100.0 %" in line for line in own)
        assert not any("repeats of an earlier" in line for line in own)


def test_excluded_prompts_are_left_out_of_every_criterion(tables, ran, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS[:2]))
    read, ranked = ran(tables, exclude=TableConfig(path=str(out)))
    assert read.metrics["dropped_rankings/excluded prompt"] == 8
    for name in criteria_tables.NAMES:
        assert read.metrics[f"{name}/dropped_rankings/excluded prompt"] == 4
        kept = {r.prompt[0]["content"] for r in read_rankings_file(rankings_file(part(ranked, name)))}
        assert kept == set(PROMPTS[2:])
    assert read.metrics["excluded_prompts_met"] == 2


def test_a_criterion_without_rankings_is_refused(tables, ran, tmp_path):
    tables["less"]["limit"] = 4
    out = tmp_path / "out.jsonl"
    out.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS[:2]))
    with pytest.raises(DataError, match=r"no ranking of data\.rankings\.criteria\.less is left: 4"):
        ran(tables, exclude=TableConfig(path=str(out)))


def test_every_reward_model_is_evaluated_on_rankings_of_another_source(tables, ran, tmp_path, training_context):
    others = tmp_path / "others.jsonl"
    answers = [f"a{'z' * count}." for count in range(5)]
    rows = [{"prompt": f"another {i}", "chosen": answers[i % 4 + 1], "rejected": answers[0]} for i in range(6)]
    others.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read, ranked = ran(tables, eval_rankings=RankingTableConfig(path=str(others), format="pairs"))
    base = tiny.base_artifact(tmp_path / "base")
    spec = STAGES["reward"]
    declared = Artifact("data", read.path, "0" * 64, read.metrics, (*spec.reads["data"], *spec.checks["data"]))
    inputs = {
        "base": base,
        "data": declared,
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "rank": ranked,
    }
    trainer = {"per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": 3e-2}
    config = RewardConfig(lora=tiny.LORA, max_length=80, trainer=trainer, gate=None)
    out = tmp_path / "reward"
    out.mkdir()
    metrics = stage.run(config, inputs, out, training_context(seed=5)[0])
    trained = Artifact("reward", out, "0" * 64, metrics, STAGES["ppo"].reads["reward"])
    for name in criteria_tables.NAMES:
        assert metrics[f"{name}/transfer_pairs"] == 6
        whole = Artifact("reward", out, "0" * 64, metrics)
        transfer = RewardQuality.read(part(whole, name)).transfer
        assert transfer is not None
        assert transfer.accuracy == metrics[f"{name}/transfer_accuracy"]
        with pytest.raises(AssertionError, match=r"eval_rankings\.json"):
            part(trained, name).has("eval_rankings.json")
        with pytest.raises(AssertionError, match=r"eval_rankings\.json"):
            trained.has(f"{name}/eval_rankings.json")


def test_what_is_too_long_is_foretold_for_one_criterion(tables, ran, tmp_path):
    tables["less"]["limit"] = 10
    read, ranked = ran(tables)
    base = tiny.base_artifact(tmp_path / "base")
    config = RewardConfig(max_length=5)
    for artifacts in ([read], [part(ranked, name) for name in criteria_tables.NAMES]):
        counts = {}
        for name in criteria_tables.NAMES:
            lines = list(forecast.lines(config, base, artifacts, name))
            counts[name] = lines
        assert counts["more"] != counts["less"]
        assert all(counts.values())
