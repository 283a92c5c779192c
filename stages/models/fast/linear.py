"""Fast linear layers for frozen backbones and the LoRA adapters on them.

`LoRALinear` is one autograd step where peft's layer takes ten. It keeps one copy of the input, in the backbone's
precision, avoids needless casts, and computes no gradient for a frozen weight. `LoRADelta` is the equivalent for
bitsandbytes layers. `matmul` uses oneDNN for float32 on a CPU, because PyTorch's default, MKL, runs at a fraction
of the speed on CPUs not made by Intel. `speed_up` installs these in a model without changing its parameters, names
or, apart from rounding, its results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pipeline.memory.limits import MERGED_COPIES

ROWS = 16
"""Below this number of rows, oneDNN is slower than MKL."""
QUANTISED = "quantised"
"""The attribute of layers that compute with a rounded weight (stages/models/quantization/qat.py). `speed_up` skips
them."""
PACKED = ("Linear4bit", "Linear8bitLt")
"""Class names of bitsandbytes layers. Names, so that bitsandbytes is imported only when it is used."""


@cache
def onednn_works() -> bool:
    """Whether this PyTorch has the oneDNN operator and it agrees with `F.linear`, including on a strided weight."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((ROWS, 6), (6, 5), (5,)))
    weight = weight.t()
    try:
        ours = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(ours, F.linear(x, weight, bias), atol=1e-5)


def matmul(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`F.linear` without autograd: (N, I) and (O, I) -> (N, O)."""
    large = len(x_NI) >= ROWS and x_NI.shape[1] > 0
    if large and x_NI.dtype == torch.float32 and x_NI.device.type == "cpu" and onednn_works():
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return F.linear(x_NI, weight_OI, bias_O)


class Linear(Function):
    """`F.linear` whose backward computes only the gradients that are needed: for a frozen weight, the input's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return matmul(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_NO = grad.flatten(0, -2)
        grad_x = grad_w = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = matmul(grad_NO, weight.t()).view(*grad.shape[:-1], weight.shape[1])
        if ctx.needs_input_grad[1]:
            grad_w = matmul(grad_NO.t(), x.flatten(0, -2).t())
        if ctx.needs_input_grad[2]:
            grad_b = grad_NO.sum(0)
        return grad_x, grad_w, grad_b


class LoRALinear(Function):
    """`x W^T + b + scaling (x A^T) B^T` with W and b frozen (Hu et al. 2021, arXiv:2106.09685, equation 3).

    For x in 16 bits, float32 A and B are rounded to x's dtype, as under autocast; so are the gradients of single
    passes, which are returned in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a_RI: Tensor, b_OR: Tensor, scaling: float
    ) -> Tensor:
        x_NI = x.flatten(0, -2)
        low_NR = matmul(x_NI, a_RI.to(x_NI.dtype))
        y_NO = matmul(x_NI, weight, bias)
        y_NO = y_NO.addmm_(low_NR, b_OR.t().to(y_NO.dtype), alpha=scaling)
        ctx.save_for_backward(x_NI, weight, a_RI, b_OR, low_NR)
        ctx.scaling = scaling
        return y_NO.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight, a_RI, b_OR, low_NR = ctx.saved_tensors
        grad_NO, needs = grad.flatten(0, -2), ctx.needs_input_grad[3:5]
        grad_low, grad_a, grad_b = _adapter_gradients(grad_NO, x_NI, a_RI, b_OR, low_NR, ctx.scaling, needs)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_NI = matmul(grad_NO, weight.t())
            grad_NI = grad_NI.addmm_(grad_low, a_RI.to(grad_NI.dtype), alpha=ctx.scaling)
            grad_x = grad_NI.view(*grad.shape[:-1], weight.shape[1])
        return grad_x, None, None, grad_a, grad_b, None


class LoRADelta(Function):
    """`y + scaling (x A^T) B^T`, where y (..., O) is a quantised layer's output for x (..., I). Precision: that of
    `LoRALinear`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
        x_NI, y_NO = x.flatten(0, -2), y.flatten(0, -2)
        low_NR = matmul(x_NI, a_RI.to(x.dtype))
        ctx.save_for_backward(x_NI, a_RI, b_OR, low_NR)
        ctx.scaling, ctx.shape = scaling, x.shape
        return torch.addmm(y_NO, low_NR.to(y.dtype), b_OR.t().to(y.dtype), alpha=scaling).view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, a_RI, b_OR, low_NR = ctx.saved_tensors
        grad_NO, needs = grad.flatten(0, -2), ctx.needs_input_grad[2:4]
        grad_low, grad_a, grad_b = _adapter_gradients(grad_NO, x_NI, a_RI, b_OR, low_NR, ctx.scaling, needs)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = (grad_low @ a_RI.to(grad_low.dtype)).mul_(ctx.scaling).to(x_NI.dtype).view(ctx.shape)
        return grad, grad_x, grad_a, grad_b, None


def _adapter_gradients(
    grad_NO: Tensor,
    x_NI: Tensor,
    a_RI: Tensor,
    b_OR: Tensor,
    low_NR: Tensor,
    scaling: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to `x A^T`, without `scaling` and in the precision of `grad_NO`, and with respect to A
    and B, in theirs."""
    grad_low = matmul(grad_NO, b_OR.t().to(grad_NO.dtype))
    grad_a = (grad_low.t() @ x_NI.to(grad_low.dtype)).to(a_RI.dtype).mul_(scaling) if needs[0] else None
    # The matrix with few rows goes on the left: the transposed product takes up to three times as long.
    grad_b = (low_NR.t().to(grad_NO.dtype) @ grad_NO).to(b_OR.dtype).mul_(scaling).t() if needs[1] else None
    return grad_low, grad_a, grad_b


class FastLinear:
    """Replaces the forward of an `nn.Linear`."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        if torch.is_autocast_enabled(x.device.type):
            # Autocast casts the weight once for all passes, and its gradient back.
            return F.linear(x, layer.weight, layer.bias)
        return Linear.apply(x, layer.weight, layer.bias)


class FastLoRA:
    """Replaces the forward of a LoRA layer with at most one active adapter and no dropout. Its base layer is an
    `nn.Linear` or a bitsandbytes layer."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._base = layer, layer.get_base_layer()
        self._packed = type(self._base).__name__ in PACKED
        self._merged: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        layer, base = self._layer, self._base
        if self._packed:
            y = base(x)
            return y if layer.disable_adapters else LoRADelta.apply(y, x, *self._adapter())
        if self._merged is not None:
            return Linear.apply(x, self._merged, base.bias)
        if layer.disable_adapters:
            return Linear.apply(x, base.weight, base.bias)
        return LoRALinear.apply(x, base.weight, base.bias, *self._adapter())

    def _adapter(self) -> tuple[Tensor, Tensor, float]:
        (name,) = self._layer.active_adapters
        return self._layer.lora_A[name].weight, self._layer.lora_B[name].weight, self._layer.scaling[name]

    @property
    def mergeable(self) -> bool:
        """Whether merging loses no precision. A sum in 16 bits would lose small adapters."""
        return bool(self._base.weight.dtype == torch.float32)

    @property
    def size(self) -> int:
        """Bytes of a merged copy."""
        return self._base.weight.nbytes

    @torch.no_grad()
    def merge(self) -> None:
        """Makes the layer compute with a copy, `W + scaling B A`, until `unmerge`."""
        if not self._layer.disable_adapters:
            a_RI, b_OR, scaling = self._adapter()
            self._merged = torch.addmm(self._base.weight, b_OR, a_RI, alpha=scaling)

    def unmerge(self) -> None:
        self._merged = None


def speed_up(model: nn.Module) -> list[FastLoRA]:
    """Replaces the forward of a model's linear and LoRA layers with the fast ones. Returns those of LoRA layers."""
    layers = []
    for module in model.modules():
        base = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if hasattr(base, QUANTISED):
            continue
        if isinstance(module, LoraLayer) and (type(base) is nn.Linear or type(base).__name__ in PACKED):
            layers.append(FastLoRA(module))
            module.forward = layers[-1]
        elif type(module) is nn.Linear:
            module.forward = FastLinear(module)  # type: ignore[assignment, method-assign]
    return layers


@contextlib.contextmanager
def merged(layers: Sequence[FastLoRA]) -> Iterator[None]:
    """Merges the adapter of each LoRA layer into a copy of its weight for the duration of the context, which speeds
    up the many small passes of decoding. A no-op if merging loses precision or the copies exceed `MERGED_COPIES`
    bytes."""
    fits = all(layer.mergeable for layer in layers) and sum(layer.size for layer in layers) <= MERGED_COPIES
    try:
        for layer in layers if fits else ():
            layer.merge()
        yield
    finally:
        for layer in layers:
            layer.unmerge()
