"""A consensus goes through the stages: `data` merges, `rank` measures single annotators, models learn from it."""

import json

import pandas as pd
import pytest
import tiny

from data.schema import Ranking, prompt_key, read_rankings_file
from data.tables.check import check_table
from pipeline.config.data import ContaminationConfig, DataConfig, RankingTableConfig, TableConfig
from pipeline.config.dpo import DPOConfig
from pipeline.config.rank import RankConfig
from pipeline.engine.stage import Artifact
from stages import data, rank
from stages.artifacts import learned_file, merged_file, rankings_file
from stages.dpo import read_pairs
from stages.reward.stage import _ranked

ANNOTATORS = ("ana", "ben", "eve")


def rating(p, a, who, value):
    text = f"please describe the old place that has the number {p}"
    return {"prompt": text, "completion": f"answer {a} of {p}", "annotator": who, "rating": value % 5}


LONE = [rating(p, (p + i) % 3, who, p * 7 + i * 3) for p in range(40) if p % 4 for i, who in enumerate(ANNOTATORS)]
"""Three annotators, each of whom rated another answer of a prompt."""
ROWS = LONE + [
    rating(p, a, who, p + a * (who != "eve")) for p in range(0, 40, 4) for who in ANNOTATORS for a in range(2)
]


@pytest.fixture
def ran(tmp_path, context):
    """Runs `data` and `rank` on a table; the artifacts and their metrics."""

    def run(rows, name, consensus="mean", **values):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        demonstrations = tmp_path / "demonstrations.jsonl"
        demonstrations.write_text(
            "".join(json.dumps({"prompt": f"d{i}", "completion": "c"}) + "\n" for i in range(20))
        )
        config = DataConfig(
            demonstrations=TableConfig(path=str(demonstrations)),
            rankings=RankingTableConfig(path=str(path), format="long", consensus=consensus),
            eval_fraction=0.3,
            **values,
        )
        out, ranked = tmp_path / name / "data", tmp_path / name / "rank"
        out.mkdir(parents=True)
        ranked.mkdir()
        metrics = data.run(config, {}, out, context())
        made = Artifact("data", out, "0" * 64)
        return (
            metrics,
            rank.run(RankConfig(), {"data": made}, ranked, context()),
            Artifact("rank", ranked, "0" * 64),
        )

    return run


def test_models_learn_from_the_consensus_and_single_annotators_are_counted(ran):
    without, ranked_without, single = ran(ROWS, "without", "none")
    metrics, ranked, merged = ran(ROWS, "with")
    table = pd.DataFrame(ROWS)
    means = table.groupby(["prompt", "completion"]).rating.mean()
    rankings = list(read_rankings_file(learned_file(merged)))
    assert len(rankings) == table.prompt.nunique() == 40
    for ranking in rankings:
        assert dict(zip(ranking.completions, ranking.ratings, strict=True)) == pytest.approx(
            means[ranking.prompt[0]["content"]].to_dict()
        )
    assert metrics["merged_rankings_train"] + metrics["merged_rankings_eval"] == ranked["merged_rankings"] == 40
    assert learned_file(single) == rankings_file(single)
    assert merged_file(single) is None
    assert rankings_file(single).read_bytes() == rankings_file(merged).read_bytes()
    counts = {name: value for name, value in ranked.items() if name != "merged_rankings"}
    assert counts == ranked_without
    assert (ranked["rankings"], ranked["annotators"]) == (30, 3)
    kept = ("rankings_train", "rankings_eval", "rankings_of_2", "annotators")
    assert [metrics[name] for name in kept] == [without[name] for name in kept]
    assert without["dropped_rankings"] == 90
    assert metrics["dropped_rankings"] == metrics["dropped_merged_rankings"] == 0
    assert without["ranked_prompts_eval"] < metrics["ranked_prompts_eval"]
    held_out = {r.prompt[0]["content"] for r in _ranked([merged], "eval")}
    assert len(held_out) == metrics["merged_rankings_eval"] == metrics["ranked_prompts_eval"]


def test_a_table_of_lone_ratings_only_goes_through_the_stages(ran):
    metrics, ranked, merged = ran(LONE, "lone")
    assert (ranked["rankings"], ranked["merged_rankings"], ranked["tie_share"]) == (0, 30, None)
    assert metrics["merged_rankings_train"] > 0
    prompts = {prompt_key(r.prompt) for r in read_rankings_file(learned_file(merged))}
    assert len(prompts) == 30
    pairs, left_out = read_pairs({"rank": merged}, tiny.codec(), DPOConfig(max_length=200), "train")
    assert left_out.read == metrics["merged_rankings_train"]
    assert {pair.key for pair in pairs} <= prompts


def test_contaminated_consensus_is_dropped_and_counted(ran, tmp_path):
    metrics, _, merged = ran(ROWS, "clean")
    held_out = next(r.prompt[0]["content"] for r in read_rankings_file(learned_file(merged)) if r.split == "eval")
    trained = next(r.prompt[0]["content"] for r in read_rankings_file(learned_file(merged)) if r.split == "train")
    rows = [
        row | ({"completion": row["completion"] + f" and {held_out}"} if row["prompt"] == trained else {})
        for row in ROWS
    ]
    drops = ContaminationConfig(exact="drop", near="ignore")
    again, ranked, dropped = ran(rows, "dirty", contamination=drops)
    assert again["dropped_merged_rankings"] == again["dropped_merged_rankings/contains a held-out prompt"] == 1
    assert ranked["merged_rankings"] == again["merged_rankings_train"] + again["merged_rankings_eval"] == 39
    assert again["merged_rankings_train"] == metrics["merged_rankings_train"] - 1
    assert trained not in {r.prompt[0]["content"] for r in read_rankings_file(learned_file(dropped))}


def test_check_counts_merged_rankings_apart(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    report = check_table("data.rankings", RankingTableConfig(path=str(path), format="long", consensus="zscore"))
    assert not report.problems
    assert (report.parsed, report.merged, report.prompts) == (30, 40, 40)
    assert report.annotators == {"ana": 10, "ben": 10, "eve": 10}
    assert all(isinstance(item, Ranking) for item in report.first)
    assert "30 rankings of 40 prompts, by ana (10), ben (10), eve (10); 40 merged rankings" in next(
        report.describe()
    )


def test_prompts_that_only_the_consensus_ranks_are_known_to_be_trained_on(ran, tmp_path):
    """Nobody ranked the lone ratings alone, so they are in no ranking of an annotator."""
    question = "how many birds came to the lake"
    renamed = [row | {"prompt": f"{question} {row['prompt']}"} for row in LONE]
    prompts = sorted({row["prompt"] for row in renamed})
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(json.dumps({"prompt": prompt, "chosen": "x", "rejected": "y"}) + "\n" for prompt in prompts)
    )
    metrics, _, ranked = ran(renamed, "lone", eval_rankings=RankingTableConfig(path=str(other), format="pairs"))
    trained = {r.prompt[0]["content"] for r in read_rankings_file(learned_file(ranked)) if r.split == "train"}
    assert metrics["eval_rankings_in_merged_rankings/exact"] == len(trained & {*prompts}) > 0
    assert "eval_rankings_in_rankings/exact" not in metrics
