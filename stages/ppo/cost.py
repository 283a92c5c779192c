"""What an update must cost at least: floating-point operations by phase, and bytes that must be resident.

A multiplication and an addition are two operations. Counted is what the mathematics asks for, in the leanest order
known: the policy's log-probs come with the sampling, logits exist where a token is predicted, weights that stand
still have no gradient, and nothing is recomputed. Elementwise work is left out.
docs/performance.md derives the formulas. Kaplan et al. 2020 (arXiv:2001.08361), section 2.1, count the same way.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from stages.models.bank import Bank, FullBank
from stages.models.linear import matmul

PHASES = ("rollout", "score", "passes", "train")
"""As they are timed by the trainer."""


@dataclass(frozen=True)
class Shape:
    """Of a language model, as far as cost goes.

    Attributes:
        trunk: weights of the linear layers that every token passes.
        head: weights of the language-model head.
        mixing: layers times the width of all query heads: one query meeting one key costs 4 operations for each
            (a product for the score, a product for the sum).
        cached: numbers that a token leaves in the cache.
    """

    trunk: int
    head: int
    mixing: int
    cached: int

    @classmethod
    def of(cls, lm: Any) -> Shape:
        head = lm.get_output_embeddings()
        config = lm.config.get_text_config()
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(
            trunk=sum(_weights(m) for name, m in lm.named_modules() if "lora_" not in name and m is not head),
            head=_weights(head),
            mixing=layers * heads * width,
            cached=2 * layers * kv_heads * width,
        )

    def forward(self, lengths: Iterable[tuple[int, int]], predicted: bool = True) -> float:
        """Operations of one forward pass over rows of (prompt, response) tokens. The last token of a response
        predicts nothing, and need not pass; with `predicted` the response's logits are made."""
        total = 0.0
        for prompt, response in lengths:
            tokens = prompt + response - 1
            total += 2 * self.trunk * tokens + 4 * self.mixing * tokens * (tokens + 1) / 2
            total += 2 * self.head * response if predicted else 0
        return total


def _weights(module: Any) -> int:
    """A linear layer's, also a quantised one's or a transposed one's; what peft wraps it in has none of its own."""
    if isinstance(module, BaseTunerLayer):
        return 0
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.in_features) * int(module.out_features)
    return module.weight.numel() if hasattr(module, "nf") and isinstance(module.weight, torch.Tensor) else 0


def update_flops(
    shape: Shape, lengths: list[tuple[int, int]], *, epochs: int, adapter_value: bool, full: bool
) -> dict[str, float]:
    """Operations of one update, by phase.

    Args:
        lengths: prompt and response tokens of every episode.
        adapter_value: the value role passes on its own (else it reads the policy's trunk).
        full: weights learn too, which costs a backward pass its second half; with LoRA the adapters' share, a
            few thousandths, is left out.
    """
    policy, bare = shape.forward(lengths), shape.forward(lengths, predicted=False)
    learning = 3 if full else 2
    return {
        "rollout": policy,
        "score": bare,
        "passes": policy + (bare if adapter_value else 0),
        "train": epochs * learning * (policy + (bare if adapter_value else 0)),
    }


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
