"""Loss scaling for float16, in which gradients of activations underflow to zero.

A loss is a mean over many tokens, so the gradient of each activation is small: at 65,000 tokens the gradient of a
float16 backbone has a cosine similarity of 0.8 with the float32 gradient. The loss is multiplied by a factor before
the backward pass, and the float32 gradients of the parameters are divided by it (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.2). bfloat16 has the range of float32 and needs no scaling.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def needs_loss_scale(model: nn.Module) -> bool:
    """Whether any of the model's weights is float16."""
    return any(parameter.dtype == torch.float16 for parameter in model.parameters())


class LossScale:
    """A dynamic loss scale, as in `torch.amp.GradScaler`. It is halved when a gradient overflows, and that step is
    skipped; it is doubled after `growth_interval` consecutive steps without overflow. GradScaler itself does not
    fit: here gradients are summed over processes and clipped between unscaling and the step.

    Args:
        active: whether to scale; otherwise the factor stays 1.
    """

    growth_interval = 2000

    def __init__(self, active: bool) -> None:
        self.active = active
        self.value = 2.0**16 if active else 1.0
        self._good_steps = 0

    def __call__(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        return loss * self.value if self.active else loss

    def unscale_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divides the gradients by the factor, in place."""
        if self.active:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self.value)

    def skips(self, finite: bool) -> bool:
        """Adapts the factor after a step. Returns whether the step must be skipped because of overflow; False if
        the factor is already 1, in which case scaling is not the cause.

        Args:
            finite: whether all gradients of the step are finite.
        """
        if not self.active:
            return False
        if finite:
            self._good_steps += 1
            if self._good_steps == self.growth_interval:
                self.value, self._good_steps = self.value * 2, 0
            return False
        self._good_steps = 0
        if self.value == 1:
            return False
        self.value = max(1.0, self.value / 2)
        return True

    def state_dict(self) -> dict[str, Any]:
        """The state, as JSON values."""
        return {"value": self.value, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.active:
            self.value, self._good_steps = state["value"], state["good_steps"]
