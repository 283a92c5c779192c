"""What the `collect` stage asks whom, in the first round and in later ones."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from data.schema import prompt_key, write_jsonl
from pipeline.config.collect import CollectConfig
from pipeline.engine.stage import Artifact
from stages import collect

SMALL = {"num_prompts": 3, "eval_prompts": 1, "num_completions": 2, "response_length": 4}


@pytest.fixture
def first(tmp_path):
    base = tiny.base_artifact(tmp_path / "base")
    return {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data", train=12, held_out=4),
        "sft": tiny.policy_artifact(tmp_path / "sft", base, seed=3),
    }


def later(first, tmp_path, asked):
    """The inputs of round `len(asked) + 1`: a policy, and rankings of the given prompts by round."""
    inputs = {"base": first["base"], "data": first["data"]}
    number = len(asked)
    ppo = tiny.policy_artifact(tmp_path / f"ppo {number}", first["base"], seed=7)
    inputs["ppo" if number == 1 else f"ppo-{number}"] = ppo
    for i, rows in enumerate(asked, start=1):
        folder = tmp_path / f"rank {number} {i}"
        folder.mkdir()
        write_jsonl(folder / "rankings.jsonl", [{"prompt": row["prompt"]} for row in rows])
        inputs["rank" if i == 1 else f"rank-{i}"] = Artifact("rank", folder, "rank")
    return inputs


@pytest.fixture
def run(tmp_path, training_context):
    def make(inputs, name, seed=0, **values):
        out = tmp_path / name
        out.mkdir()
        ctx, _ = training_context(seed=seed)
        metrics = collect.run(CollectConfig(**(SMALL | values)), inputs, out, ctx)
        return list(Artifact("collect", out, "").jsonl("answers.jsonl")), metrics

    return make


def prompts(rows, split="train"):
    return [row["prompt"][0]["content"] for row in rows if row["split"] == split]


def all_prompts(first, split="train"):
    return prompts(sorted(first["data"].jsonl("prompts.jsonl"), key=lambda row: prompt_key(row["prompt"])), split)


def test_the_first_round_asks_the_sft_model_the_first_prompts(first, run):
    rows, metrics = run(first, "out")
    assert prompts(rows) == all_prompts(first)[:3]
    assert prompts(rows, "eval") == all_prompts(first, "eval")[:1]
    assert metrics["prompts"] == 4
    assert "prompts_again" not in metrics


def test_a_later_round_asks_the_newest_policy_prompts_that_were_not_ranked(first, run, tmp_path):
    one, _ = run(first, "one")
    again = later(first, tmp_path, [one])
    two, metrics = run(again, "two", seed=1)
    three, _ = run(later(first, tmp_path, [one, two]), "three", seed=2)
    asked = [*prompts(one), *prompts(two), *prompts(three)]
    assert len(set(asked)) == 9
    assert len({*prompts(one, "eval"), *prompts(two, "eval"), *prompts(three, "eval")}) == 3
    assert set(asked) <= set(all_prompts(first))
    assert metrics["prompts_again"] == 0
    assert prompts(two) != [p for p in all_prompts(first) if p not in prompts(one)][:3], "at random, not in order"
    other, _ = run(again, "other", seed=9)
    assert prompts(other) != prompts(two)


def test_a_later_round_answers_with_another_policy(first, run, tmp_path):
    """The same prompts, asked again for want of others, get other answers from other weights."""
    one, _ = run(first, "one", num_prompts=12, eval_prompts=4)
    two, metrics = run(later(first, tmp_path, [one]), "two", num_prompts=12, eval_prompts=4)
    assert sorted(prompts(two)) == sorted(prompts(one))
    assert metrics["prompts_again"] == 16
    answers = [{row["prompt"][0]["content"]: row["completions"] for row in rows} for rows in (one, two)]
    assert sum(answers[0][prompt] != answers[1][prompt] for prompt in answers[0]) > 8


def test_prompts_are_asked_again_where_there_are_not_enough(first, run, tmp_path):
    one, _ = run(first, "one", num_prompts=10)
    two, metrics = run(later(first, tmp_path, [one]), "two", num_prompts=5, eval_prompts=None)
    assert len(set(prompts(two))) == 5
    assert set(all_prompts(first)[10:]) <= set(prompts(two))
    assert metrics["prompts_again"] == 3 + 1


def test_disagreement_chooses_the_prompts_whose_answers_the_members_score_differently(
    first, run, tmp_path, monkeypatch
):
    """Two members, who score alike but for prompts that end in an odd digit, where they are opposed."""

    def members(prompts, responses):
        scores = []
        for prompt, response in zip(prompts, responses, strict=True):
            differs = prompt.messages[-1]["content"][-1] in "13579"
            number = float(sum(response) % 97)
            scores.append([number, -number if differs else number])
        return torch.tensor(scores).T

    monkeypatch.setattr(collect, "load_scorer", lambda *_, **values: SimpleNamespace(members=members))
    one, _ = run(first, "one", num_prompts=2)
    inputs = later(first, tmp_path, [one])
    inputs["reward"] = Artifact("reward", tmp_path, "reward")
    two, metrics = run(inputs, "two", select="disagreement", pool=3)
    assert metrics["candidates"] == 9
    assert metrics["disagreement"] > metrics["disagreement_candidates"] > 0
    assert [p[-1] in "13579" for p in prompts(two)] == [True] * 3
    assert len(prompts(two, "eval")) == 1
    assert not set(prompts(two)) & set(prompts(one))
