"""The `sft` stage, and the LoRA values that the roles share."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.config.section import ADDED, RUNTIME, BelowOne, Count, field, section, trainer_values

SFT_TRAINER = {"learning_rate": 2e-4, "num_train_epochs": 1, "per_device_train_batch_size": 8}
"""Defaults of `sft.trainer`."""


@section
class LoRAConfig:
    """peft's `LoraConfig`, by its own names."""

    r: Count = 16
    """Rank of the adapter's two matrices. The adapter's size grows in proportion to it."""
    lora_alpha: Count = 32
    """Scale: the adapter's output is multiplied by `lora_alpha / r`."""
    lora_dropout: BelowOne = 0.0
    """Dropout probability on the adapter's input, in SFT, reward, DPO and RAFT training. PPO uses no
    dropout."""
    target_modules: str | list[str] = "all-linear"
    """Layers that get an adapter: `all-linear` for every linear layer but the output layer; a list of names or of
    their ends (`[q_proj, v_proj]`); or one string, a regular expression that must match the whole name."""


@section
class SFTConfig:
    """Supervised fine-tuning with trl's SFTTrainer."""

    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    """The adapter to train; null: train every weight."""
    max_length: Count = 256
    """Maximum tokens of prompt and completion together. Longer demonstrations are left out and counted."""
    assistant_only_loss: bool = field(default=False, metadata=ADDED)
    """true: the loss is on every turn of the assistant in a conversation, false: on the last one only. The chat
    template must show where the turns are (docs/chat_templates.md)."""
    packing: bool = True
    """Put several demonstrations into one row of `max_length` tokens. They do not attend to each other."""
    trainer: dict[str, Any] = trainer_values("trl.SFTConfig", SFT_TRAINER)
    """Values of `trl.SFTConfig`, by their own names. One optimizer step uses `per_device_train_batch_size` times
    `gradient_accumulation_steps` rows, whatever the number of processes."""
    micro_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Rows per forward and backward pass. null: `trainer.per_device_train_batch_size`. auto: start with all rows of
    an optimizer step, and halve whenever the GPU runs out of memory. Affects memory and speed, not results."""
