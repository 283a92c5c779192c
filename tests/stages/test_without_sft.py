"""Recipes with `sft: null`: the reward model, PPO, DPO and evaluation start from the base model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from data.schema import write_jsonl
from pipeline.config.collect import CollectConfig
from pipeline.config.data import DataConfig, RankingTableConfig, TableConfig
from pipeline.config.dpo import DPOConfig
from pipeline.config.ppo import PPOConfig
from pipeline.config.reward import RewardConfig
from pipeline.config.sft import LoRAConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError
from stages import collect, data, dpo
from stages.eval.answers import evaluated
from stages.models.adapters import load_policy
from stages.models.loading import load_backbone
from stages.ppo import roles
from stages.ppo import stage as ppo
from stages.reward import stage as reward

PPO = {"total_episodes": 16, "batch_size": 8, "num_mini_batches": 2, "response_length": 5, "eval_updates": 1}
LORAS = pytest.mark.parametrize("lora", [LoRAConfig(r=3, lora_alpha=6), None], ids=["lora", "full"])


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    return {
        "base": tiny.base_artifact(tmp_path / "base"),
        "data": tiny.data_artifact(tmp_path / "data"),
        "rank": tiny.rank_artifact(tmp_path / "rank"),
    }


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.tensor(tiny.rows(1, 6, 6))).logits
    return result


@LORAS
def test_policy_and_reference_start_as_the_base_model(
    inputs: dict[str, Artifact], tmp_path: Path, lora: LoRAConfig | None
) -> None:
    rewards = {"reward": tiny.reward_artifact(tmp_path / "reward", inputs["base"], lora=lora is not None)}
    config = PPOConfig(**PPO, lora=lora, value="adapter")  # type: ignore[arg-type]
    bank, _ = roles.build(config, inputs | rewards, tiny.codec(), "cpu")
    assert set(bank.roles) == set(tiny.ROLES)
    assert bank.trainable == {"policy", "value"}
    expected = logits(load_backbone(inputs["base"], "cpu"))
    for role in ("reference", "policy"):
        with bank.active(role) as actor:
            assert torch.equal(logits(actor.lm), expected), role
    assert bank.checksum("value") == bank.checksum("reward")
    if lora is not None:
        shapes = {parameter.shape for parameter in bank.parameters_of("policy")}
        assert shapes == {s for s in shapes if 3 in s}


@LORAS
def test_a_critic_of_its_own_starts_from_the_base_model_if_the_reward_model_is_not_on_the_backbone(
    inputs: dict[str, Artifact], tmp_path: Path, lora: LoRAConfig | None
) -> None:
    other = {"reward": tiny.reward_artifact(tmp_path / "reward", inputs["base"], lora=lora is None)}
    config = PPOConfig(**PPO, lora=lora, value="adapter")  # type: ignore[arg-type]
    bank, _ = roles.build(config, inputs | other, tiny.codec(), "cpu")
    expected = logits(load_backbone(inputs["base"], "cpu"))
    with bank.active("value") as actor:
        assert torch.equal(logits(actor.lm), expected)


@LORAS
def test_ppo_trains_and_a_later_round_continues_from_its_policy(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Any, lora: LoRAConfig | None
) -> None:
    inputs |= {"reward": tiny.reward_artifact(tmp_path / "reward", inputs["base"], lora=lora is not None)}
    config = PPOConfig(**PPO, lora=lora, learning_rate=1e-2)  # type: ignore[arg-type]
    metrics = ppo.run(config, inputs, new(tmp_path / "out"), training_context()[0])
    first = Artifact("ppo", tmp_path / "out", "ppo", metrics)
    points = list(first.jsonl("evaluations.jsonl"))
    assert points[0]["kl"] == 0
    assert points[-1]["kl"] > 0
    trained = logits(load_policy(inputs["base"], first, "cpu"))
    assert not torch.equal(trained, logits(load_backbone(inputs["base"], "cpu")))
    bank, _ = roles.build(config, inputs | {"ppo": first}, tiny.codec(), "cpu")
    with bank.active("policy") as actor:
        torch.testing.assert_close(logits(actor.lm), trained)
    with bank.active("reference") as actor:
        assert torch.equal(logits(actor.lm), logits(load_backbone(inputs["base"], "cpu")))


@LORAS
def test_dpo_starts_at_its_reference(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Any, lora: LoRAConfig | None
) -> None:
    trainer = {"per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2}
    config, (ctx, notes) = DPOConfig(max_length=60, trainer=trainer, lora=lora), training_context()
    dpo.run(config, inputs, new(tmp_path / "out"), ctx)
    losses = [values["loss"] for _, values in notes.logged if "loss" in values]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)  # -log sigmoid(0)
    policy = Artifact("dpo", tmp_path / "out", "dpo")
    trained = logits(load_policy(inputs["base"], policy, "cpu"))
    assert not torch.equal(trained, logits(load_backbone(inputs["base"], "cpu")))


@LORAS
def test_reward_init_sft_then_means_the_base_model(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Any, lora: LoRAConfig | None
) -> None:
    trainer = {"per_device_train_batch_size": 4, "max_steps": 2}
    written = []
    for init in ("sft", "base"):
        config = RewardConfig(init=init, lora=lora, max_length=60, trainer=trainer, gate=None)  # type: ignore[arg-type]
        reward.run(config, inputs, new(tmp_path / f"from-{init}"), training_context(state=init)[0])
        file = "model/model.safetensors" if lora is None else "adapter/adapter_model.safetensors"
        written.append(load_file(tmp_path / f"from-{init}" / file))
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(tensor, written[1][name]) for name, tensor in written[0].items())


def test_the_first_stage_that_reads_the_data_refuses_what_the_template_refuses(
    tmp_path: Path, training_context: Any
) -> None:
    """This is SFT's work where there is an SFT stage."""
    template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template += "{{ m.content }}{% endfor %}"
    base = tiny.base_artifact(tmp_path / "base")
    (base.path / "tokenizer/chat_template.jinja").write_text(template)
    rows = [
        {"prompt": tiny.user("ab"), "split": "train", "table": "prompts", "row": 1},
        {
            "prompt": [{"role": "system", "content": "s"}, *tiny.user("ab")],
            "split": "train",
            "table": "prompts",
            "row": 7,
        },
    ]
    artifact = tiny.data_artifact(tmp_path / "data")
    write_jsonl(artifact.path / "prompts.jsonl", rows)
    inputs = {"base": base, "data": artifact, "rank": tiny.rank_artifact(tmp_path / "rank")}
    ctx, _ = training_context()
    with pytest.raises(DataError, match=r"refuses 1 of 2 prompts: no system") as refusal:
        collect.run(CollectConfig(), inputs, new(tmp_path / "collect"), ctx)
    assert "row 7 (data.prompts)" in refusal.value.where
    with pytest.raises(DataError, match=r"refuses 1 of 2 prompts"):
        reward.run(RewardConfig(), inputs, new(tmp_path / "reward"), ctx)


def test_the_base_model_is_evaluated_once_as_the_reference(inputs: dict[str, Artifact]) -> None:
    policy = Artifact("ppo", Path("ppo"), "ppo")
    assert evaluated(inputs | {"ppo": policy}) == {"base": None, "ppo": policy}


def test_prompts_of_rankings_are_enough_without_demonstrations(tmp_path: Path, training_context: Any) -> None:
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(40)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"q{i}"} for i in range(40)])
    config = DataConfig(
        rankings=RankingTableConfig(path=str(tmp_path / "pairs.jsonl"), format="pairs"),
        prompts=TableConfig(path=str(tmp_path / "prompts.jsonl")),
    )
    metrics = data.run(config, {}, new(tmp_path / "out"), training_context()[0])
    assert (metrics["demonstrations_train"], metrics["demonstrations_eval"]) == (0, 0)
    assert metrics["prompts_train"] + metrics["prompts_eval"] == 80
    assert (tmp_path / "out/demonstrations.jsonl").read_text() == ""
    held_out = [json.loads(line)["split"] for line in (tmp_path / "out/prompts.jsonl").read_text().splitlines()]
    assert held_out.count("eval") == metrics["prompts_eval"] > 0


def test_prompts_that_are_all_held_out_are_refused(tmp_path: Path, training_context: Any) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "p"}])
    config = DataConfig(prompts=TableConfig(path=str(tmp_path / "prompts.jsonl")), eval_fraction=0.9999)
    with pytest.raises(DataError, match="all 1 prompts are held out"):
        data.run(config, {}, new(tmp_path / "out"), training_context()[0])
