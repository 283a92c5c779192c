"""Linear layers whose weights mostly stand still: frozen backbones, and the LoRA adapters on them.

`LoRALinear` does in one autograd step what peft's layer does in ten: it keeps one copy of the input, in the
backbone's precision, casts nothing that needs no cast, and computes no gradient of a frozen weight. `LoRADelta`
does the same beside a layer of bitsandbytes. `matmul` takes oneDNN for float32 on a CPU: PyTorch's own route is
MKL, which on CPUs that are not Intel's runs at a fraction of the speed. `speed_up` puts these to work in a model,
whose parameters, names and results stay what they are.
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
"""oneDNN takes longer than MKL for fewer rows than this."""
QUANTISED = "quantised"
"""The attribute of layers that compute with a rounded weight (stages/models/quantization/qat.py), and so are not
sped up."""
PACKED = ("Linear4bit", "Linear8bitLt")
"""Layers of bitsandbytes, by name: importing it is for those who use it."""


@cache
def onednn_works() -> bool:
    """Whether this PyTorch has the operator and it gives what `F.linear` gives, on a strided weight too."""
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
    """`F.linear` without a gradient, (N, O)."""
    large = len(x_NI) >= ROWS and x_NI.shape[1] > 0
    if large and x_NI.dtype == torch.float32 and x_NI.device.type == "cpu" and onednn_works():
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return F.linear(x_NI, weight_OI, bias_O)


class Linear(Function):
    """`F.linear` whose backward computes what is asked for: of a frozen weight, the input's gradient only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        learns = weight.requires_grad
        ctx.save_for_backward(x if learns else None, weight)
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
    """`x W^T + b + scaling (x A^T) B^T` with W and b frozen (Hu et al. 2021, arXiv:2106.09685, equation 3)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a_RI: Tensor, b_OR: Tensor, scaling: float
    ) -> Tensor:
        x_NI = x.flatten(0, -2)
        low_NR = matmul(x_NI.to(a_RI.dtype), a_RI).mul_(scaling)
        y_NO = matmul(x_NI, weight, bias)
        y_NO = y_NO.addmm_(low_NR.to(y_NO.dtype), b_OR.t().to(y_NO.dtype))
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
            grad_NI = grad_NI.addmm_(grad_low.to(grad_NI.dtype), a_RI.to(grad_NI.dtype))
            grad_x = grad_NI.view(*grad.shape[:-1], weight.shape[1])
        return grad_x, None, None, grad_a, grad_b, None


class LoRADelta(Function):
    """`y + scaling (x A^T) B^T`, where y (..., O) is what a quantised layer makes of x (..., I)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
        x_NI, y_NO = x.flatten(0, -2), y.flatten(0, -2)
        low_NR = matmul(x_NI.to(a_RI.dtype), a_RI).mul_(scaling)
        ctx.save_for_backward(x_NI, a_RI, b_OR, low_NR)
        ctx.scaling, ctx.shape = scaling, x.shape
        return torch.addmm(y_NO, low_NR.to(y.dtype), b_OR.t().to(y.dtype)).view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, a_RI, b_OR, low_NR = ctx.saved_tensors
        grad_NO, needs = grad.flatten(0, -2), ctx.needs_input_grad[2:4]
        grad_low, grad_a, grad_b = _adapter_gradients(grad_NO, x_NI, a_RI, b_OR, low_NR, ctx.scaling, needs)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = (grad_low @ a_RI).to(x_NI.dtype).view(ctx.shape)
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
    """Gradients of `x A^T` (scaling included), of A and of B, in the adapter's precision."""
    wide_NO = grad_NO.to(b_OR.dtype)
    grad_low = matmul(wide_NO, b_OR.t()).mul_(scaling)
    grad_a = grad_low.t() @ x_NI.to(a_RI.dtype) if needs[0] else None
    # The few rows on the left: the same product the other way round takes up to three times as long.
    grad_b = (low_NR.t() @ wide_NO).t() if needs[1] else None
    return grad_low, grad_a, grad_b


class FastLinear:
    """What `nn.Linear.forward` becomes."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        if torch.is_autocast_enabled(x.device.type):
            # Which casts a weight once for all passes, and knows the way back.
            return F.linear(x, layer.weight, layer.bias)
        return Linear.apply(x, layer.weight, layer.bias)


class FastLoRA:
    """What the forward of a LoRA layer becomes: at most one adapter, no dropout. Its base is an `nn.Linear` or a
    layer of bitsandbytes."""

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
        """Without rounding that matters: a sum in 16 bits would lose small adapters."""
        return bool(self._base.weight.dtype == torch.float32)

    @property
    def size(self) -> int:
        return self._base.weight.nbytes

    @torch.no_grad()
    def merge(self) -> None:
        """Until `unmerge` the layer computes with `W + scaling B A`, a copy."""
        if not self._layer.disable_adapters:
            a_RI, b_OR, scaling = self._adapter()
            self._merged = torch.addmm(self._base.weight, b_OR, a_RI, alpha=scaling)

    def unmerge(self) -> None:
        self._merged = None


def speed_up(model: nn.Module) -> list[FastLoRA]:
    """Makes the linear layers and LoRA layers of a model compute as above; returns what LoRA layers became."""
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
    """Decoding takes hundreds of small passes: inside this, each LoRA layer computes with one merged copy of its
    weight, where that is exact and the copies are small (`MERGED_COPIES`)."""
    fits = all(layer.mergeable for layer in layers) and sum(layer.size for layer in layers) <= MERGED_COPIES
    try:
        for layer in layers if fits else ():
            layer.merge()
        yield
    finally:
        for layer in layers:
            layer.unmerge()
