"""Loss scaling for float16, whose smallest number is so large that the gradients of activations become zero.

A loss is a mean over many tokens, so the gradient of each activation is small: at 65,000 tokens the gradient of a
backbone in float16 has a cosine of 0.8 with that in float32. The loss is multiplied by a factor before the backward
pass and the gradients of the parameters, which are float32, are divided by it (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.2). bfloat16 has float32's range and needs none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def needs_loss_scale(model: nn.Module) -> bool:
    """Whether any of a model's weights is float16."""
    return any(parameter.dtype == torch.float16 for parameter in model.parameters())


class LossScale:
    """A dynamic factor, as `torch.amp.GradScaler` has one: halved when a gradient overflows, and that step is left
    out; doubled after `growth_interval` steps in a row without one. GradScaler itself steps the optimizer of one
    process; here gradients are summed over processes first, and clipped as those of any other precision.

    Args:
        active: whether there is a factor at all; without one it is 1.
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
        """Adapts the factor to whether a step's gradients are finite. Returns whether the step must be left out
        because a gradient overflowed; False once the factor is 1, when the factor did not make it overflow."""
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
        """JSON values."""
        return {"value": self.value, "good_steps": self._good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.active:
            self.value, self._good_steps = state["value"], state["good_steps"]
