"""The `ppo` stage with weighted terms, and what `eval` reads of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from pipeline.config.evaluate import EvalConfig
from pipeline.config.ppo import AggregateConfig, KLConfig, PPOConfig, ScoreConfig
from pipeline.config.terms import LengthConfig, TermConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.eval.judges import load_proxy, scoring_judges
from stages.ppo import roles, stage
from stages.ppo.artifact import EvaluationPoint
from stages.ppo.terms import TermSignal
from stages.sampling.prompts import EncodedPrompt

FUNCTION = """
def vowels(completions, target=None, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    return [None if text.startswith("z") else float(sum(text.count(v) for v in "aeiou")) for text in texts]
"""
RUNNING = ScoreConfig(normalization="running", clip=3.0)
VALUES: dict[str, Any] = {
    "total_episodes": 16,
    "batch_size": 8,
    "num_ppo_epochs": 1,
    "num_mini_batches": 2,
    "response_length": 5,
    "max_prompt_length": 30,
    "eval_updates": 1,
    "eval_prompts": 2,
    "kl": KLConfig(kind="fixed", init=0.05),
}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    base = tiny.base_artifact(tmp_path / "base")
    return {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "reward": tiny.reward_artifact(tmp_path / "reward", base),
    }


@pytest.fixture
def terms(tmp_path: Path, inputs: dict[str, Artifact]) -> list[TermConfig]:
    (tmp_path / "rewards.py").write_text(FUNCTION)
    other = tiny.reward_artifact(tmp_path / "other", inputs["base"], seed=11)
    return [
        TermConfig(name="model", model="reward"),
        TermConfig(name="vowels", function=f"{tmp_path / 'rewards.py'}:vowels", weight=0.5, score=RUNNING),
        TermConfig(name="length", length=LengthConfig(target=3), weight=2.0),
        TermConfig(name="other", model=str(other.path), held_out=True),
    ]


def run(inputs: dict[str, Artifact], out: Path, ctx: Any, terms: list[TermConfig], **values: Any) -> Artifact:
    out.mkdir()
    config = PPOConfig(**VALUES | {"reward": AggregateConfig(terms=terms)} | values)
    return Artifact("ppo", out, "ppo", stage.run(config, inputs, out, ctx))


@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_terms_from_training_to_evaluation(
    inputs: dict[str, Artifact],
    terms: list[TermConfig],
    tmp_path: Path,
    training_context: Callable[..., Any],
    value: str,
) -> None:
    ctx, notes = training_context()
    policy = run(inputs, tmp_path / "out", ctx, terms, value=value)
    names = [term.name for term in terms]
    for _, logged in notes.logged:
        assert {f"rewards/{name}/{kind}" for name in names for kind in ("mean", "std")} <= logged.keys()
        assert 0 <= logged["rewards/vowels/applied"] <= 1
    assert (policy.path / "functions" / "vowels.py").read_text() == FUNCTION
    written = policy.json("terms.json")
    assert [term["name"] for term in written["terms"]] == names
    statistics = written["statistics"]
    assert statistics["model"]["count"] == 8  # one batch of the reference's answers
    assert statistics["other"]["count"] == statistics["length"]["count"] == 0

    # The proxy of `eval` is the sum that PPO optimised, under its last statistics, for texts of its own.
    (tmp_path / "rewards.py").write_text("raise RuntimeError('eval reads the copy')")
    codec = tiny.codec()
    points = list(policy.rows("evaluations.jsonl", EvaluationPoint))
    assert [point.update for point in points] == [0, 1, 2]
    rows = list(policy.jsonl("evaluations.jsonl"))
    proxy = load_proxy(inputs | {"ppo": policy}, codec, "cpu")
    for row in rows:
        prompts = [EncodedPrompt(messages, codec.prompt(messages), "eval") for messages in row["prompts"]]
        torch.testing.assert_close(proxy(prompts, row["response_ids"]), torch.tensor(row["scores"]))
        raw = row["terms"]
        assert raw["length"] == pytest.approx([-abs(len(ids) - 3) / 3 for ids in row["response_ids"]])
        assert raw["vowels"] == [
            None if text.startswith("z") else float(sum(text.count(v) for v in "aeiou"))
            for text in row["responses"]
        ]
        assert row["scores"] == pytest.approx(by_hand(raw, statistics), abs=1e-4)
    # A term that PPO did not train on is a judge.
    judges = scoring_judges(EvalConfig(), inputs | {"ppo": policy}, codec, "cpu")
    assert [judge.name for judge in judges] == ["other"]
    assert judges[0].scores(prompts, row["response_ids"]) == pytest.approx(raw["other"], abs=1e-5)


def by_hand(raw: dict[str, list[float | None]], statistics: dict[str, dict[str, float]]) -> list[float]:
    def scaled(name: str, value: float | None, clip: float) -> float:
        of = statistics[name]
        if value is None:
            return 0.0
        score = (value - of["mean"]) / math.sqrt(of["square"] / of["count"])
        return min(max(score, -clip), clip)

    return [
        scaled("model", model, 5.0) + 0.5 * scaled("vowels", vowels, 3.0) + 2.0 * (length or 0.0)
        for model, vowels, length in zip(raw["model"], raw["vowels"], raw["length"], strict=True)
    ]


def test_without_the_runs_reward_model_no_role_holds_it(
    inputs: dict[str, Artifact], terms: list[TermConfig]
) -> None:
    config = PPOConfig(**VALUES | {"reward": AggregateConfig(terms=terms[1:]), "value": "adapter"})
    bank, reward = roles.build(config, inputs, tiny.codec(), "cpu")
    assert "reward" not in bank.roles
    assert isinstance(reward, TermSignal)
    normalizer = reward.normalizer(config.score, stage.World())
    roles.start_value(bank, config, normalizer)  # there is no head of a reward model to rescale


def test_a_value_head_of_a_held_out_reward_model_starts_at_zero(inputs: dict[str, Artifact]) -> None:
    terms = [TermConfig(name="m", model="reward", held_out=True), TermConfig(name="p", pattern="a")]
    config = PPOConfig(**VALUES | {"reward": AggregateConfig(terms=terms), "value": "adapter"})
    bank, reward = roles.build(config, inputs, tiny.codec(), "cpu")
    roles.start_value(bank, config, reward.normalizer(config.score, stage.World()))
    with bank.active("value") as actor:
        assert not actor.scalar(actor.hidden(torch.tensor(tiny.rows(2, 6, 6)))).any()


def test_the_gate_looks_at_the_models_that_ppo_is_trained_on(
    inputs: dict[str, Artifact], terms: list[TermConfig], tmp_path: Path, training_context: Callable[..., Any]
) -> None:
    ctx, _ = training_context()
    (inputs["reward"].path / "quality.json").write_text(json.dumps({"unfit": ["it guesses"]}))
    with pytest.raises(StageError, match="unfit for PPO: it guesses"):
        run(inputs, tmp_path / "refused", ctx, terms)
    run(inputs, tmp_path / "without", ctx, terms[1:])
    trained = TermConfig(name="other", model=str(tmp_path / "other"))
    (tmp_path / "other" / "quality.json").write_text(json.dumps({"unfit": ["it guesses, too"]}))
    with pytest.raises(StageError, match="it guesses, too"):
        run(inputs, tmp_path / "other-refused", ctx, [trained])


def test_metadata_of_prompts_reaches_the_function(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., Any]
) -> None:
    """The reward is the answer in the data: the mean reward is that of the prompts' answers."""
    file = inputs["data"].path / "prompts.jsonl"
    rows = [json.loads(line) | {"metadata": {"answer": 7}} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text("def answers(completions, answer):\n    return answer\n")
    ctx, notes = training_context()
    run(inputs, tmp_path / "out", ctx, [TermConfig(name="a", function=f"{tmp_path / 'rewards.py'}:answers")])
    assert [metrics["rewards/a/mean"] for _, metrics in notes.logged] == [7, 7]


def test_a_function_that_fails_stops_the_stage(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., Any]
) -> None:
    (tmp_path / "rewards.py").write_text("def broken(completions):\n    return [1 / 0] * len(completions)\n")
    ctx, _ = training_context()
    with pytest.raises(StageError, match="raised ZeroDivisionError") as error:
        run(inputs, tmp_path / "out", ctx, [TermConfig(name="b", function=f"{tmp_path / 'rewards.py'}:broken")])
    assert error.value.where == "ppo.reward.terms[0].function"
