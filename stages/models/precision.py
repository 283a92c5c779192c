"""In which precision a model computes, and how exactly it repeats itself, which bounds what may be asked of two
ways to compute the same.

A model computes in the precision of its weights, or with float32 weights under autocast (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.1): what learns in full, and what it is compared with, has float32 weights whose
products are computed in bfloat16.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.models.quantization.qat import quantised

COMPUTE = "autocast_dtype"
"""The attribute of a model that computes under autocast: the precision of its products."""
EXACT = 1e-3
"""Largest difference between equal computations in float32, in units of what is compared (nats, scores)."""
ROUGH = 0.09
"""Root mean square of differences between equal computations in 16 bits, as a share of the spread of what is
compared. The largest difference of many numbers grows with their count and says little; this does not.

Measured with SmolLM2-135M in bfloat16 (docs/log/ppo.md): 0.02 for log-probs of tokens, 0.04 for scores of a reward
model. A scalar head that is off by a tenth makes 0.1 or more. What is off by less than rounding is not noticed."""
FLOOR = 0.1
"""The spread is taken to be at least this share of the numbers' own size: rounding is a share of that, also where
all scores happen to lie close together."""


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Makes passes inside `computing(model)` compute their products in `dtype`."""
    setattr(model, COMPUTE, dtype)


def computing(model: Any) -> contextlib.AbstractContextManager[Any]:
    """The context for a model's forward pass: autocast, if `compute_in` set it. The backward pass belongs outside:
    it takes the precision of the forward pass by itself. Inside one context each weight is cast once."""
    dtype = getattr(model, COMPUTE, None)
    return contextlib.nullcontext() if dtype is None else torch.autocast(model.device.type, dtype=dtype)


def precision_of(model: Any) -> torch.dtype:
    """What a causal LM computes in: autocast's precision, or that of its embedding."""
    dtype: torch.dtype = getattr(model, COMPUTE, model.get_input_embeddings().weight.dtype)
    return dtype


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Inside, products with tensors on `x`'s device have the precision of their operands."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


def working_dtype(x: Tensor) -> torch.dtype:
    """The precision of products with `x`: its own, or autocast's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def exact(model: nn.Module) -> bool:
    """Whether the same tokens in other shapes (another batch, with a cache, another order of sums) give the same
    numbers but for float32's rounding. In 16 bits they differ by more than a step of the optimizer changes; and
    so they do with inputs on a grid, each by what it or its batch holds, as in bitsandbytes' 8 bits and with
    fake-quantised activations."""
    if any(p.dtype != torch.float32 for p in model.parameters() if p.is_floating_point()):
        return False
    if any(hasattr(module, COMPUTE) for module in model.modules()):
        return False
    if any(type(module).__name__ == "Linear8bitLt" for module in model.modules()):
        return False
    return all(layer.activations == "none" for layer in quantised(model))


def spread_of(numbers: Tensor) -> float:
    """Their standard deviation, or `FLOOR` of their root mean square if that is more. Never zero."""
    wide = numbers.detach().cpu().double()
    return max(float(wide.std(unbiased=False)), FLOOR * float(wide.square().mean().sqrt()), 1e-12)


@dataclass(frozen=True)
class Deviation:
    """How far numbers are from what they should be.

    Attributes:
        largest: the largest absolute difference.
        relative: the root mean square of the differences over the spread (standard deviation) of the expected ones.
    """

    largest: float
    relative: float

    @classmethod
    def between(cls, found: Tensor, expected: Tensor) -> Deviation:
        """Of two tensors of one shape, computed in float64 on the CPU; not finite if a number is not. Zero for
        none."""
        if not found.numel():
            return cls(0.0, 0.0)
        found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
        difference = found - expected
        return cls(float(difference.abs().max()), float(difference.square().mean().sqrt()) / spread_of(expected))

    def is_rounding(self, exact: bool, unit: float = 1.0) -> bool:
        """Whether rounding explains it: of a model that is `exact` by the largest difference, in units of `unit`,
        of another one by the root mean square."""
        return self.largest <= EXACT * unit if exact else self.relative <= ROUGH

    def __str__(self) -> str:
        return f"off by {self.largest:.3g} at most and by {self.relative:.2g} of the spread (root mean square)"
