"""How exactly a model repeats itself, which bounds what may be asked of two ways to compute the same."""

from __future__ import annotations

import torch
from torch import nn

from stages.models.qat import quantised


def exact(model: nn.Module) -> bool:
    """Whether the same tokens in other shapes (another batch, with a cache, another order of sums) give the same
    numbers but for float32's rounding. In 16 bits they differ by more than a step of the optimizer changes; and
    so they do with inputs on a grid, each by what it or its batch holds, as in bitsandbytes' 8 bits and with
    fake-quantised activations."""
    if any(p.dtype != torch.float32 for p in model.parameters() if p.is_floating_point()):
        return False
    if any(type(module).__name__ == "Linear8bitLt" for module in model.modules()):
        return False
    return all(layer.activations == "none" for layer in quantised(model))
