"""The `raft` stage: fine-tuning on the best of n answers, a baseline for PPO."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.config.ppo import AggregateConfig
from pipeline.config.section import RUNTIME, Count, Positive, field, section, trainer_values
from pipeline.config.sft import LoRAConfig
from pipeline.config.terms import ScoreConfig

if TYPE_CHECKING:
    from pipeline.config.recipe import Recipe

RAFT_TRAINER = {"learning_rate": 2e-4, "num_train_epochs": 1, "per_device_train_batch_size": 8}
"""Defaults of `raft.trainer`."""


@section
class RAFTConfig:
    """RAFT (Dong et al. 2023, arXiv:2304.06767), also called rejection-sampling fine-tuning: trl's SFTTrainer
    trains on the best of n answers of the SFT model to each prompt, by PPO's reward (`ppo.reward`, `ppo.score`,
    `ppo.missing_eos_penalty`). It starts from the SFT model, and trains adapters if SFT did. With `sft: null` it
    samples and starts from the base model."""

    enabled: bool = True
    """Whether the stage runs. Set it to false to switch off a section that a parent recipe has."""
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    """Only for `sft: null`: the adapter to train; null: train every weight, as PPO must then, too."""
    best_of_n: Annotated[int, Field(ge=2)] = 16
    """Answers sampled per prompt, n. Always giving the best of them has a KL from the SFT model of at most log n -
    (n-1)/n nats per response. Training approximates that policy."""
    num_prompts: Count | None = None
    """Training prompts to sample answers to; null: all."""
    max_prompt_length: Count = 128
    """Maximum tokens of a prompt. Longer prompts are left out and counted."""
    response_length: Count = 64
    """Maximum tokens of an answer."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    trainer: dict[str, Any] = trainer_values("trl.SFTConfig", RAFT_TRAINER)
    """Values of `trl.SFTConfig`, by their own names. Batch sizes count answers."""
    micro_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Answers per forward and backward pass. null: `trainer.per_device_train_batch_size`. auto: start with all
    answers of an optimizer step, and halve whenever the GPU runs out of memory. Affects memory and speed, not
    results."""
    batch_size: Count = field(default=256, metadata=RUNTIME)
    """Answers sampled or scored at the same time. Halved whenever the GPU runs out of memory."""


@section
class RAFTStageConfig(RAFTConfig):
    """What the stage reads: its section of the recipe, and PPO's values that decide the reward."""

    reward: AggregateConfig
    """`ppo.reward`."""
    score: ScoreConfig
    """`ppo.score`."""
    missing_eos_penalty: float | None
    """`ppo.missing_eos_penalty`."""
    reward_model: str | None
    """`ppo.reward_model`."""
    reward_model_revision: str | None
    """`ppo.reward_model_revision`."""


def resolved(recipe: Recipe, raft: RAFTConfig) -> RAFTStageConfig:
    """The section with PPO's reward."""
    own = {f.name: getattr(raft, f.name) for f in fields(raft)}
    ppo = recipe.ppo
    return RAFTStageConfig(
        **own,
        reward=ppo.reward,
        score=ppo.score,
        missing_eos_penalty=ppo.missing_eos_penalty,
        reward_model=ppo.reward_model,
        reward_model_revision=ppo.reward_model_revision,
    )
