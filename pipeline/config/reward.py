"""The `reward` stage: a scalar reward model from rankings of K answers."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.config.section import RUNTIME, Chance, Count, Natural, NonNegative, field, section
from pipeline.config.sft import LoRAConfig


@section
class GateConfig:
    """What the reward model must show on held-out prompts before PPO trusts it; `--force` overrides."""

    min_accuracy: Chance = 0.55
    """Pairwise accuracy over held-out rankings, ties left out."""
    max_length_correlation: Chance = 0.9
    """Largest absolute Spearman correlation of score and completion length."""


@section
class RewardConfig:
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    """null: train every weight. Must agree with `sft.lora`: the roles share one backbone or none do."""
    init: Literal["sft", "base"] = "sft"
    """Where the reward adapter starts: as the SFT adapter's copy, or empty on the base."""
    objective: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """Bradley-Terry over all pairs of a ranking, each weighted 1/C(K,2); or Plackett-Luce with ties."""
    center_rewards_coefficient: NonNegative = 0.0
    """Weight of the squared mean score of a prompt's answers, which pins the scores' offset."""
    max_length: Count = 256
    """Tokens of prompt and completion; longer ones are left out, and counted."""
    golden: Natural = 16
    """Texts whose scores are stored with the model and verified whenever it is loaded."""
    gate: GateConfig = field(default_factory=GateConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    """Values of `transformers.TrainingArguments`, by their own names; a batch is counted in prompts."""
    micro_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Prompts that go through the model at once; null: `trainer.per_device_train_batch_size`; auto: a whole
    optimizer step, and half as many whenever the GPU's memory runs out. Changes memory, not mathematics."""
    eval_batch_size: Count = field(default=64, metadata=RUNTIME)
    """Completions scored together."""
