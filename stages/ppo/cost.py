"""What an update costs on the model at hand: its shape, bytes that must be resident, and what this machine reaches.

The arithmetic of operations is in pipeline/memory/flops.py, which the plan before a run shares.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from pipeline.memory.flops import PHASES, ModelCost, update_flops
from stages.models.bank import Bank, FullBank
from stages.models.fast.linear import matmul

__all__ = ["PHASES", "ModelCost", "attainable", "resident_bytes", "shape_of", "update_flops"]


def shape_of(lm: Any) -> ModelCost:
    """Counted on the modules themselves, whatever they are quantised to or wrapped in."""
    head = lm.get_output_embeddings()
    config = lm.config.get_text_config()
    layers, heads = (
        config.num_hidden_layers,
        getattr(config, "num_attention_heads", 0),
    )  # a recurrent model has none
    width = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return ModelCost(
        trunk=sum(_weights(m) for name, m in lm.named_modules() if "lora_" not in name and m is not head),
        head=_weights(head),
        mixing=layers * heads * width,
        cached=2 * layers * kv_heads * width,
    )


def _weights(module: Any) -> int:
    """A linear layer's, also a quantised one's or a transposed one's; what peft wraps it in has none of its own."""
    if isinstance(module, BaseTunerLayer):
        return 0
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features) * int(module.out_features)
    return module.weight.numel() if hasattr(module, "nf") and isinstance(module.weight, torch.Tensor) else 0


def resident_bytes(bank: Bank) -> dict[str, int]:
    """Bytes that no order of the work can do without: weights, and of what learns gradients and Adam's moments."""
    weights = {p.data_ptr(): p.nbytes for p in bank.parameters()}
    learns = {p.data_ptr(): p.nbytes for p in bank.parameters() if p.requires_grad}
    adapters = sum(p.nbytes for n, p in bank.named_parameters() if "lora_" in n)
    backbone = sum(weights.values()) - adapters
    return {
        "backbones" if isinstance(bank, FullBank) else "backbone": backbone,
        "adapters": adapters,
        "gradients": sum(learns.values()),
        "optimizer": 2 * sum(learns.values()),
    }


@cache
def attainable(device: str, dtype: torch.dtype) -> float:
    """Operations a second that this machine reaches in one large matrix product: what utilisation is measured
    against. Takes a fifth of a second, once."""
    size = 4096 if torch.device(device).type == "cuda" else 1024
    a, b = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < 0.2:
        began = time.perf_counter()
        matmul(a, b)
        if a.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
