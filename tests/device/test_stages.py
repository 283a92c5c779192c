"""The PPO, DPO and RAFT stages on the device."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from simulated_device import NAME

from pipeline.config.dpo import DPOConfig
from pipeline.config.ppo import AggregateConfig, PPOConfig
from pipeline.config.raft import RAFTStageConfig
from pipeline.config.terms import ScoreConfig
from pipeline.engine.stage import Artifact, RunContext
from stages import dpo, raft
from stages.ppo import stage as ppo

PPO = {
    "total_episodes": 16,
    "batch_size": 8,
    "num_mini_batches": 2,
    "response_length": 10,
    "learning_rate": 1e-3,
    "max_prompt_length": 30,
    "eval_updates": 1,
    "eval_prompts": 3,
    "save_updates": 1,
    "micro_batch_size": "auto",
}


@pytest.fixture
def ctx(training_context: Callable[..., Any]) -> RunContext:
    return replace(training_context()[0], device=NAME)


def inputs(folder: Path, dtype: str, *, lora: bool = True, members: int = 1) -> dict[str, Artifact]:
    base = tiny.base_artifact(folder / "base")
    spec = base.path / "base.json"
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"dtype": dtype}))
    return {
        "base": base,
        "data": tiny.data_artifact(folder / "data"),
        "sft": tiny.policy_artifact(folder / "sft", base, lora=lora),
        "rank": tiny.rank_artifact(folder / "rank"),
        "reward": tiny.reward_artifact(folder / "reward", base, lora=lora, members=members),
    }


@pytest.mark.parametrize(
    ("dtype", "artifacts", "values"),
    [
        pytest.param("bfloat16", {"members": 2}, {"value": "adapter", "gradient_checkpointing": True}, id="lora"),
        pytest.param(
            "float32", {"lora": False}, {"value": "trunk", "ptx_coef": 0.1}, id="full", marks=pytest.mark.slow
        ),
        pytest.param(
            "float16",
            {},
            {"value": "trunk", "importance_sampling_clip_max": 2.0},
            id="float16",
            marks=pytest.mark.slow,
        ),
        pytest.param("bfloat16", {"lora": False}, {"value": "trunk"}, id="full under autocast"),
    ],
)
def test_ppo_stage_runs(tmp_path: Path, ctx: RunContext, dtype: str, artifacts: Any, values: Any) -> None:
    artifacts_in, out = inputs(tmp_path, dtype, **artifacts), tmp_path / "out"
    out.mkdir()
    if "members" in artifacts:
        values |= {"reward": AggregateConfig(aggregate="min")}
    metrics = ppo.run(PPOConfig(**(PPO | values)), artifacts_in, out, ctx)
    assert metrics["updates"] == 2
    after = Artifact("ppo", out, "ppo")
    assert [row["update"] for row in after.jsonl("evaluations.jsonl")] == [0, 1, 2]
    assert len(after.json("fingerprints.json")["policy"]) == 8


def test_dpo_stage_runs(tmp_path: Path, ctx: RunContext) -> None:
    artifacts_in, out = inputs(tmp_path, "bfloat16"), tmp_path / "out"
    out.mkdir()
    trainer = {"per_device_train_batch_size": 4, "max_steps": 2}
    metrics = dpo.run(DPOConfig(max_length=60, trainer=trainer), artifacts_in, out, ctx)
    assert 0 <= metrics["eval_accuracy"] <= 1


def test_raft_stage_runs(tmp_path: Path, ctx: RunContext) -> None:
    artifacts_in, out = inputs(tmp_path, "bfloat16", members=2), tmp_path / "out"
    out.mkdir()
    config = RAFTStageConfig(
        best_of_n=3, max_prompt_length=30, response_length=10, batch_size=8,
        trainer={"per_device_train_batch_size": 4, "max_steps": 2}, reward=AggregateConfig(aggregate="min"),
        score=ScoreConfig(), missing_eos_penalty=1.0, reward_model=None, reward_model_revision=None,
    )  # fmt: skip
    metrics = raft.run(config, artifacts_in, out, ctx)
    assert metrics["answers"] == 3 * metrics["prompts"]
    assert metrics["reward_selected"] > metrics["reward"]
