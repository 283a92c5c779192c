"""PPO on the reward models of several criteria, which share the policy's backbone."""

import json

import criteria_tables
import pytest
import tiny
import torch

from pipeline.config.evaluate import EvalConfig
from pipeline.config.ppo import AggregateConfig, KLConfig, PPOConfig
from pipeline.config.terms import TermConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.criteria import part
from stages.eval.judges import load_proxy, scoring_judges
from stages.ppo import gate, roles, stage
from stages.sampling.prompts import EncodedPrompt
from stages.score.source import from_place
from stages.scoring.load import load_scorer

WEIGHTS = {"more": 0.7, "less": 0.3}
TERMS = [TermConfig(name=name, model="reward", criterion=name, weight=weight) for name, weight in WEIGHTS.items()]
VALUES = {
    "total_episodes": 8,
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
def inputs(tmp_path):
    base = tiny.base_artifact(tmp_path / "base")
    return {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "reward": criteria_tables.reward_artifact(tmp_path / "reward", base, members=2),
    }


def config(terms, **values):
    return PPOConfig(**VALUES | {"reward": AggregateConfig(terms=terms)} | values)


@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_the_reward_is_the_weighted_sum_of_scores_normalised_apart(inputs, tmp_path, training_context, value):
    ctx, notes = training_context()
    out = tmp_path / "out"
    out.mkdir()
    policy = Artifact("ppo", out, "ppo", stage.run(config(TERMS, value=value), inputs, out, ctx))
    codec = tiny.codec()
    alone = {
        name: load_scorer(part(inputs["reward"], name), inputs, codec, "cpu") for name in criteria_tables.NAMES
    }
    statistics = policy.json("terms.json")["statistics"]
    proxy = load_proxy(inputs | {"ppo": policy}, codec, "cpu")
    for row in policy.jsonl("evaluations.jsonl"):
        prompts = [EncodedPrompt(messages, codec.prompt(messages), "eval") for messages in row["prompts"]]
        total = torch.zeros(len(prompts))
        for name, scorer in alone.items():
            scores = scorer(prompts, row["response_ids"])
            torch.testing.assert_close(torch.tensor(row["terms"][name]), scores, rtol=1e-4, atol=1e-4)
            std = (statistics[name]["square"] / statistics[name]["count"]) ** 0.5
            total += WEIGHTS[name] * ((scores - statistics[name]["mean"]) / std).clamp(-5, 5)
        torch.testing.assert_close(torch.tensor(row["scores"]), total, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(proxy(prompts, row["response_ids"]), total, rtol=1e-3, atol=1e-3)
    assert {"rewards/more/disagreement", "rewards/less/disagreement"} <= notes.logged[-1][1].keys()
    assert scoring_judges(EvalConfig(judge="none"), inputs | {"ppo": policy}, codec, "cpu") == []


def test_all_reward_models_are_roles_of_one_backbone(inputs):
    bank, _ = roles.build(config(TERMS, value="adapter"), inputs, tiny.codec(), "cpu")
    rewards = {"reward_more", "reward_more-1", "reward_less", "reward_less-1"}
    assert set(bank.roles) == {"reference", "policy", "value"} | rewards
    assert set(bank.heads) == {"value"} | rewards
    assert not bank.heads["value"].weight.any(), "no single reward model predicts the reward"
    for name, tensor in bank.state_of("reference").items():
        assert torch.equal(bank.state_of("value")[name], tensor)


def test_a_criterion_that_is_held_out_is_a_judge(inputs, tmp_path, training_context):
    held_out = TermConfig(name="less", model="reward", criterion="less", held_out=True)
    ctx, _ = training_context()
    out = tmp_path / "out"
    out.mkdir()
    policy = Artifact("ppo", out, "ppo", stage.run(config([TERMS[0], held_out]), inputs, out, ctx))
    codec = tiny.codec()
    (judge,) = scoring_judges(EvalConfig(judge="none"), inputs | {"ppo": policy}, codec, "cpu")
    assert judge.name == "less"
    place = str(inputs["reward"].path / "more")
    with pytest.raises(StageError, match="the very reward model that PPO was trained with"):
        scoring_judges(EvalConfig(judge="none", reward_model=place), inputs | {"ppo": policy}, codec, "cpu")


def test_the_gate_asks_every_criterion_that_ppo_is_trained_on(inputs, training_context):
    (inputs["reward"].path / "less" / "quality.json").write_text(json.dumps({"unfit": ["it is deaf"]}))
    ctx, _ = training_context()
    with pytest.raises(StageError, match="unfit for PPO: less: it is deaf"):
        gate.check(config(TERMS), inputs, ctx)
    assert gate.check(config(TERMS[:1]), inputs, ctx) == []
    forced, _ = training_context(force=True)
    assert gate.check(config(TERMS), inputs, forced) == ["less: it is deaf"]


def test_terms_of_artifacts_with_criteria_name_one(inputs):
    unnamed = TermConfig(name="reward", model="reward")
    with pytest.raises(StageError, match="several criteria, and none of them is named") as error:
        roles.build(config([unnamed]), inputs, tiny.codec(), "cpu")
    assert "more, less" in error.value.hint
    with pytest.raises(StageError, match="a reward model for each criterion"):
        roles.build(PPOConfig(**VALUES), inputs, tiny.codec(), "cpu")


def test_a_folder_with_criteria_needs_the_name_of_one(inputs):
    with pytest.raises(StageError, match="several criteria, and none of them is named"):
        from_place(str(inputs["reward"].path), None, "cpu")
    with pytest.raises(StageError, match="have no criterion tone"):
        from_place(str(inputs["reward"].path), None, "cpu", criterion="tone")
