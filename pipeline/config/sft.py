"""The `sft` stage, and the LoRA values that the roles share."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.config.section import RUNTIME, BelowOne, Count, field, section


@section
class LoRAConfig:
    """peft's `LoraConfig`, by its own names."""

    r: Count = 16
    lora_alpha: Count = 32
    lora_dropout: BelowOne = 0.0
    target_modules: str | list[str] = "all-linear"


@section
class SFTConfig:
    """Supervised fine-tuning with trl's SFTTrainer; the loss is on completions only."""

    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    """null: train every weight."""
    max_length: Count = 256
    """Tokens of prompt and completion; longer demonstrations are left out, and counted."""
    packing: bool = True
    """Put several demonstrations into one row of `max_length`; they do not see each other."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Values of `trl.SFTConfig`, by their own names. One optimizer step is over `per_device_train_batch_size` times
    `gradient_accumulation_steps` rows, on however many processes."""
    micro_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Rows that go through the model at once; null: `trainer.per_device_train_batch_size`; auto: a whole
    optimizer step, and half as many whenever the GPU's memory runs out. Changes memory, not mathematics."""
