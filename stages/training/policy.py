"""The policy that a Hugging Face `Trainer` trains from a finished one: that of SFT or, without SFT, the base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from pipeline.config.sft import LoRAConfig
from pipeline.engine.stage import Artifact
from stages.models.adapters import (
    MODEL,
    float32_trainables,
    load_full,
    save_adapter,
    start_adapter,
    trained_in_full,
    trains_adapter,
)
from stages.models.loading import load_backbone
from stages.models.quantization import qat


def trainable_policy(base: Artifact, sft: Artifact | None, lora: LoRAConfig | None, device: str) -> Any:
    """The SFT model, or the base model without SFT, with what is trained unfrozen: the adapter, or all weights."""
    if not trains_adapter(sft, lora):
        return trained_in_full(load_full(base, sft, device), base, device)
    model = start_adapter(load_backbone(base, device), sft, lora, trainable=True)
    qat.adapt(model)
    return model


def trainables(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def restore(model: Any, start: Mapping[str, Tensor]) -> None:
    """Reverts what trl's trainers change when they are constructed: they may add a copy of the adapter as a
    reference, and they cast adapters of a 4-bit model to bfloat16.

    Args:
        start: `trainables` of the model before.
    """
    if isinstance(model, PeftModel):
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
        model.set_adapter("default")
    float32_trainables(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(start[name])


def save_policy(model: Any, out_dir: Path) -> None:
    """Writes `adapter/`, or `model/` after a full fine-tune."""
    if isinstance(model, PeftModel):
        save_adapter(model, "default", out_dir)
    else:
        model.save_pretrained(out_dir / MODEL)
