"""The `dpo` stage: direct preference optimisation on the same rankings, a baseline to PPO."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.config.section import RUNTIME, Count, Positive, field, section


@section
class DPOConfig:
    """DPO with trl's DPOTrainer (Rafailov et al. 2023, arXiv:2305.18290): from the SFT model, which is its
    reference as well. Adapters are trained where SFT trained adapters."""

    enabled: bool = True
    """Whether a recipe with this section has the stage."""
    beta: Positive = 0.1
    """The penalty on the log-ratio to the reference; higher stays nearer."""
    pairs: Literal["all", "extremes"] = "all"
    """Of each ranking every strict pair, or the first against the last alone. A pair counts as often as it was
    ranked so; ties make none."""
    max_length: Count = 256
    """Tokens of prompt and completion; pairs with a longer one are left out, and counted."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Values of `trl.DPOConfig`, by their own names; a batch is counted in pairs."""
    micro_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Pairs that go through the model at once; null: `trainer.per_device_train_batch_size`; auto: a whole
    optimizer step, and half as many whenever the GPU's memory runs out. Changes memory, not mathematics."""
    precompute_ref_batch_size: Count = field(default=256, metadata=RUNTIME)
    """Answers that the reference reads at once, and the policy when it is measured on held-out pairs. Halved
    whenever the GPU's memory runs out."""
