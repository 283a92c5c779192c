import json
from collections import Counter

import pytest

from data.schema import Ranking, write_jsonl
from pipeline.config.rank import AnnotatorConfig, RankConfig
from pipeline.errors import RecipeError
from stages.rank import run

MR = "name[Blue Fox], kind[pub], food[Thai]"
COMPLETIONS = [
    "Blue Fox is a pub with Thai food.",
    "Blue Fox is a pub.",
    "Blue Fox is a pub with Thai food.",
    "Blue Fox is a pub with French food. It is in the harbour.",
]


def careful(name):
    return AnnotatorConfig(name=name, oversight=0.0, noise=0.0)


@pytest.fixture
def collected(artifact):
    made = artifact("collect")
    prompt = [{"role": "user", "content": MR}]
    row = {"prompt": prompt, "completions": COMPLETIONS, "split": "train"}
    write_jsonl(made.path / "answers.jsonl", [row] * 9 + [row | {"split": "eval"}])
    return {"collect": made}


def stage(config, inputs, tmp_path, context, seed=0, name="out"):
    out = tmp_path / name
    out.mkdir()
    metrics = run(config, inputs, out, context(seed))
    rows = [Ranking(**json.loads(line)) for line in (out / "rankings.jsonl").read_text().splitlines()]
    return metrics, rows, out


def test_careful_annotators_rank_by_facts(collected, tmp_path, context):
    config = RankConfig(source="simulated", annotators=[careful("ann"), careful("bob")])
    metrics, rankings, out = stage(config, collected, tmp_path, context)
    assert len(rankings) == 20
    for ranking in rankings:
        assert ranking.ranks[0] == ranking.ranks[2] == 1
        assert min(ranking.ranks[1], ranking.ranks[3]) > 1
        assert not ranking.human
    assert [r.split for r in rankings] == ["train"] * 18 + ["eval"] * 2
    assert metrics["human"] is False
    assert (metrics["agreement"], metrics["alpha"]) == (1.0, pytest.approx(1.0))
    assert metrics["pairs"] == sum(len(r.pairs()) for r in rankings)
    assert metrics["tie_share"] == pytest.approx(1 - metrics["pairs"] / (20 * 6))
    assert json.loads((out / "agreement.json").read_text())["pairwise"]["value"] == 1.0


def test_annotators_take_turns(collected, tmp_path, context):
    config = RankConfig(source="simulated", annotators=[careful(name) for name in "abcde"], annotators_per_prompt=2)
    metrics, rankings, _ = stage(config, collected, tmp_path, context)
    assert set(Counter(r.annotator for r in rankings).values()) == {4}
    assert metrics["annotators"] == 5
    for first, second in zip(rankings[::2], rankings[1::2], strict=True):
        assert first.annotator != second.annotator


def test_the_seed_decides(collected, tmp_path, context):
    noisy = [AnnotatorConfig(name=name, noise=2.0) for name in "abc"]
    config = RankConfig(source="simulated", annotators=noisy)
    _, first, _ = stage(config, collected, tmp_path, context, seed=1, name="1")
    _, again, _ = stage(config, collected, tmp_path, context, seed=1, name="2")
    _, other, _ = stage(config, collected, tmp_path, context, seed=2, name="3")
    assert first == again
    assert first != other


def test_too_few_annotators(collected, tmp_path, context):
    for annotators in ([], [careful("ann")]):
        config = RankConfig(source="simulated", annotators=annotators, annotators_per_prompt=2)
        with pytest.raises(RecipeError, match="annotators_per_prompt must be from 1 to"):
            stage(config, collected, tmp_path, context, name=f"out{len(annotators)}")


def test_given_rankings_are_passed_on(artifact, tmp_path, context):
    data = artifact("data")
    prompt = [{"role": "user", "content": "p"}]
    given = [Ranking(prompt, ["x", "y"], ranks, name, human=True) for name, ranks in (("a", [1, 2]), ("b", [2, 1]))]
    write_jsonl(data.path / "rankings.jsonl", given)
    metrics, rankings, _ = stage(RankConfig(source="data"), {"data": data}, tmp_path, context)
    assert rankings == given
    assert metrics["human"] is True
    assert (metrics["rankings"], metrics["agreement"], metrics["agreement_pairs"]) == (2, 0.0, 1)


def test_agreement_is_null_where_nobody_overlaps(artifact, tmp_path, context):
    data = artifact("data")
    prompt = [{"role": "user", "content": "p"}]
    write_jsonl(data.path / "rankings.jsonl", [Ranking(prompt, ["x", "y"], [1, 2], "a", human=True)])
    metrics, _, _ = stage(RankConfig(), {"data": data}, tmp_path, context)
    assert (metrics["agreement"], metrics["alpha"], metrics["tie_share"]) == (None, None, 0.0)


def test_agreement_json_holds_weights_and_a_row_for_each_annotator(artifact, tmp_path, context):
    data = artifact("data")
    given = [
        Ranking(
            [{"role": "user", "content": f"p{i}"}],
            ["x", "longer"],
            [1, 2] if name != "c" or i % 2 else [2, 1],
            name,
            human=True,
            models=["m", "n"],
            metadata={"seconds": 4.0, "shown": [1, 0]},
        )
        for i in range(60)
        for name in "abc"
    ]
    write_jsonl(data.path / "rankings.jsonl", given)
    metrics, _, out = stage(RankConfig(), {"data": data}, tmp_path, context)
    found = json.loads((out / "agreement.json").read_text())
    assert found["weights"].keys() == found["by_annotator"].keys() == set("abc")
    assert found["weights"]["c"] < 0.5 < 1 < found["weights"]["a"]
    assert found["by_annotator"]["a"]["longer"]["value"] == 0.0
    assert found["by_annotator"]["c"]["first_shown"]["value"] == 0.5
    assert found["by_annotator"]["c"]["seconds"]["median"] == 4.0
    assert [row["model"] for row in found["models"]] == ["m", "n"]
    assert metrics["first_shown"] == pytest.approx(1 / 6)
    assert (metrics["measured_on"], metrics["tau"]) == (180, pytest.approx(1 / 3))
    assert found["sample"] == {"rankings": 180, "of": 180, "prompts": 60, "share": 1.0}
