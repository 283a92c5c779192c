"""The `dpo` stage: direct preference optimisation on the same rankings, a baseline for PPO."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.config.section import ADDED, RUNTIME, Count, Positive, field, section, trainer_values
from pipeline.config.sft import LoRAConfig

DPO_TRAINER = {"learning_rate": 5e-5, "num_train_epochs": 1, "per_device_train_batch_size": 16}
"""Defaults of `dpo.trainer`."""


@section
class DPOConfig:
    """DPO with trl's DPOTrainer (Rafailov et al. 2023, arXiv:2305.18290). It starts from the SFT model, which is
    also its reference, and trains adapters if SFT did. With `sft: null` both are the base model."""

    enabled: bool = True
    """Whether the stage runs. Set it to false to switch off a section that a parent recipe has."""
    lora: LoRAConfig | None = field(default_factory=LoRAConfig, metadata=ADDED)
    """Only for `sft: null`: the adapter to train; null: train every weight, as PPO must then, too."""
    criterion: str | None = field(default=None, metadata=ADDED)
    """Only for `data.rankings.criteria`: the criterion whose rankings are used."""
    beta: Positive = 0.1
    """Strength of the penalty on the log-ratio to the reference. Higher values keep the policy closer to it."""
    pairs: Literal["all", "extremes"] = "all"
    """all: every strict pair of each ranking. extremes: only its best answer against its worst. A pair counts as
    often as it was ranked that way, times the weight of its ranking (`weight` in `data.rankings.columns`); ties
    give no pair."""
    max_length: Count = 256
    """Maximum tokens of prompt and completion together. Pairs with a longer answer are left out and counted."""
    trainer: dict[str, Any] = trainer_values("trl.DPOConfig", DPO_TRAINER)
    """Values of `trl.DPOConfig`, by their own names. Batch sizes count pairs."""
    micro_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Pairs per forward and backward pass. null: `trainer.per_device_train_batch_size`. auto: start with all pairs
    of an optimizer step, and halve whenever the GPU runs out of memory. Affects memory and speed, not results."""
    precompute_ref_batch_size: Count = field(default=256, metadata=RUNTIME)
    """Answers per forward pass when the reference's log-probabilities are computed, and when the policy is measured
    on held-out pairs. Halved whenever the GPU runs out of memory."""
