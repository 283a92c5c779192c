"""The precision that a model computes in, and the tolerances for comparing two computations of the same numbers.

A model computes in the precision of its weights, or under autocast with float32 weights (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.1). Fully fine-tuned models, and the models they are compared with, have float32 weights
and compute their products in bfloat16.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.models.quantization.qat import quantised

COMPUTE = "autocast_dtype"
"""The attribute that marks a model as computing under autocast. Its value is the dtype of the products."""
EXACT = 1e-3
"""Largest difference between equivalent float32 computations, in the unit of the values (nats, scores)."""
ROUGH = 0.09
"""Largest root mean square of differences between equivalent 16-bit computations, as a fraction of the spread of
the values. (The largest difference would not do: it grows with the number of values.)

Measured with SmolLM2-135M in bfloat16 (docs/log/ppo.md): 0.02 for log-probs of tokens, 0.04 for scores of a reward
model. A scalar head that is off by a tenth gives 0.1 or more. Errors smaller than rounding go undetected."""
FLOOR = 0.1
"""Lower bound of the spread, as a fraction of the values' root mean square. Rounding errors scale with the values'
magnitude, even if all scores lie close together."""


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Makes the model compute its products in `dtype` inside `computing(model)`."""
    setattr(model, COMPUTE, dtype)


def computing(model: Any) -> contextlib.AbstractContextManager[Any]:
    """The context for a model's forward pass: autocast, if set by `compute_in`. Inside one context each weight is
    cast once. Run the backward pass outside; it uses the precision of the forward pass."""
    dtype = getattr(model, COMPUTE, None)
    return contextlib.nullcontext() if dtype is None else torch.autocast(model.device.type, dtype=dtype)


def precision_of(model: Any) -> torch.dtype:
    """The dtype that a causal LM computes in: that of autocast, or that of its embedding."""
    dtype: torch.dtype = getattr(model, COMPUTE, model.get_input_embeddings().weight.dtype)
    return dtype


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Disables autocast on `x`'s device, so that products have the precision of their operands."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype of products with `x`: that of autocast, or that of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def exact(model: nn.Module) -> bool:
    """Whether the same tokens give the same numbers, up to float32 rounding, in another batch, with a cache, or
    with another order of summation.

    In 16 bits the difference exceeds the change of an optimizer step. The same holds for quantised inputs
    (bitsandbytes' 8 bits, fake-quantised activations), whose grid depends on the row or the batch.
    """
    if any(p.dtype != torch.float32 for p in model.parameters() if p.is_floating_point()):
        return False
    if any(hasattr(module, COMPUTE) for module in model.modules()):
        return False
    if any(type(module).__name__ == "Linear8bitLt" for module in model.modules()):
        return False
    return all(layer.activations == "none" for layer in quantised(model))


def spread_of(numbers: Tensor) -> float:
    """The standard deviation, but at least `FLOOR` times the root mean square. Never zero."""
    wide = numbers.detach().cpu().double()
    return max(float(wide.std(unbiased=False)), FLOOR * float(wide.square().mean().sqrt()), 1e-12)


@dataclass(frozen=True)
class Deviation:
    """The deviation of values from expected values.

    Attributes:
        largest: the largest absolute difference.
        relative: the root mean square of the differences over the expected values' spread (`spread_of`).
    """

    largest: float
    relative: float

    @classmethod
    def between(cls, actual: Tensor, expected: Tensor) -> Deviation:
        """The deviation of two tensors of the same shape, computed in float64 on the CPU. Zero for empty tensors,
        and not finite if a value is not."""
        if not actual.numel():
            return cls(0.0, 0.0)
        actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
        difference = actual - expected
        return cls(float(difference.abs().max()), float(difference.square().mean().sqrt()) / spread_of(expected))

    def is_rounding(self, exact: bool, unit: float = 1.0) -> bool:
        """Whether rounding explains the deviation. For an `exact` model the largest difference decides, in units of
        `unit`; otherwise the root mean square."""
        return self.largest <= EXACT * unit if exact else self.relative <= ROUGH

    def __str__(self) -> str:
        return f"off by {self.largest:.3g} at most (root mean square: {self.relative:.2g} of the spread)"
