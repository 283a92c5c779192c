"""Quantisation-aware training: the forward pass uses the export format's grid, with straight-through gradients.

The weight W of a linear layer, or with LoRA `W + scaling B A` of the active adapter, is rounded to a grid of
`stages.models.quantization.grids` before the product. The gradient treats the rounding as the identity (Bengio et
al. 2013, arXiv:1308.3432). So training and sampling use the weights that each role will have after merging and
export.

`mark` makes the linear layers of a backbone round their weights; `adapt` does the same for adapters added later. A
weight is rounded in every pass, or once inside `kept`, where no weight may change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pipeline.errors import StageError
from stages.models.fast.linear import QUANTISED as MARK
from stages.models.fast.linear import matmul
from stages.models.quantization import grids


class StraightThrough(Function):
    """`x Q^T + b`, where Q is W or `W + scaling B A`, rounded to a grid; x may be rounded too. The gradients of W,
    B and A are those of the unrounded Q."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        q_OI: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        a_RI: Tensor | None,
        b_OR: Tensor | None,
        scaling: float,
    ) -> Tensor:
        x_NI = x.flatten(0, -2)
        trains_weights = any(ctx.needs_input_grad[3:6])
        ctx.save_for_backward(x_NI if trains_weights else None, q_OI, a_RI, b_OR)
        ctx.scaling = scaling
        return matmul(x_NI, q_OI, bias).view(*x.shape[:-1], len(q_OI))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, q_OI, a_RI, b_OR = ctx.saved_tensors
        needs_x, _, needs_bias, needs_weight, needs_a, needs_b, _ = ctx.needs_input_grad
        grad_NO = grad.flatten(0, -2)
        grad_x = matmul(grad_NO, q_OI.t()).view(*grad.shape[:-1], q_OI.shape[1]) if needs_x else None
        grad_weight = matmul(grad_NO.t(), x_NI.t()) if needs_weight else None
        grad_a = grad_b = None
        if needs_a or needs_b:
            wide_NO, wide_NI = grad_NO.to(a_RI.dtype), x_NI.to(a_RI.dtype)
            grad_a = (matmul(wide_NO, b_OR.t()).mul_(ctx.scaling)).t() @ wide_NI if needs_a else None
            grad_b = wide_NO.t() @ matmul(wide_NI, a_RI).mul_(ctx.scaling) if needs_b else None
        return grad_x, None, grad_NO.sum(0) if needs_bias else None, grad_weight, grad_a, grad_b, None


class Int8PerToken(Function):
    """Rounds x to torchao's dynamic int8 grid (`grids.int8_per_token`), with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return grids.int8_per_token(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Quantised:
    """Replaces the forward of a marked linear layer, or of the LoRA layer on it, with at most one active adapter
    and no dropout."""

    def __init__(self, layer: nn.Linear, grid: str, activations: str) -> None:
        self.layer, self.grid, self.activations = layer, grid, activations
        self.lora: Any = None
        self.keeps = False
        self._kept: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        adapter = self._adapter()
        if self._kept is None:
            weight = self.weight()
            if self.keeps:
                self._kept = weight
        else:
            weight = self._kept
        if self.activations == "int8":
            x = Int8PerToken.apply(x)
        a_RI, b_OR, scaling = adapter or (None, None, 1.0)
        return StraightThrough.apply(x, weight, self.layer.bias, self.layer.weight, a_RI, b_OR, scaling)

    @torch.no_grad()
    def latent(self) -> Tensor:
        """The unrounded weight (O, I), float32, with the active adapter merged into it as peft does."""
        weight, adapter = self.layer.weight.float(), self._adapter()
        if adapter is None:
            return weight
        a_RI, b_OR, scaling = adapter
        return weight + (b_OR @ a_RI) * scaling

    def weight(self) -> Tensor:
        """The rounded weight (O, I), in the backbone's precision."""
        return grids.onto(self.grid, self.latent()).to(self.layer.weight.dtype)

    def keep(self, keeps: bool) -> None:
        """Whether to reuse the rounded weight of the first pass. Every call discards the one in use."""
        self.keeps, self._kept = keeps, None

    def _adapter(self) -> tuple[Tensor, Tensor, float] | None:
        if self.lora is None or self.lora.disable_adapters or self.lora.merged:
            return None
        (name,) = self.lora.active_adapters
        return self.lora.lora_A[name].weight, self.lora.lora_B[name].weight, self.lora.scaling[name]


def linears(model: Any) -> dict[str, nn.Linear]:
    """The linear layers of a causal LM's blocks, by name. Training rounds them, and every export quantises them.
    Embeddings and the output layer (often the same weight) stay unquantised."""
    output = model.get_output_embeddings()
    return {
        name: module for name, module in model.named_modules() if type(module) is nn.Linear and module is not output
    }


def mark(model: Any, quantization: Mapping[str, str]) -> None:
    """Makes the linear layers of a backbone's blocks compute on a grid.

    Args:
        quantization: `base.quantization` of a recipe, as in `base.json`.

    Raises `StageError` when the model has no such layers or their shapes do not fit the grid.
    """
    layers = linears(model)
    if not layers:
        raise StageError(
            f"{type(model).__name__} has no nn.Linear in its blocks: quantisation-aware training supports no other "
            "layer",
            where="base.quantization",
            hint="use a model of another architecture, or base.quantization: nf4",
        )
    for layer in layers.values():
        grids.check(quantization["qat"], layer.weight.shape)
        quantised_layer = Quantised(layer, quantization["qat"], quantization["activations"])
        setattr(layer, MARK, quantised_layer)
        layer.forward = quantised_layer  # type: ignore[assignment, method-assign]


def adapt(model: nn.Module) -> None:
    """Makes the LoRA layers on marked linear layers round the sum of weight and adapter."""
    for module in model.modules():
        layer = getattr(module.get_base_layer(), MARK, None) if isinstance(module, LoraLayer) else None
        if layer is not None:
            layer.lora = module
            module.forward = layer


def quantised(model: nn.Module) -> list[Quantised]:
    """The quantised forwards of a model's marked layers."""
    return [getattr(module, MARK) for module in model.modules() if hasattr(module, MARK)]


@contextlib.contextmanager
def kept(layers: list[Quantised]) -> Iterator[None]:
    """Makes each layer round its weight only once inside the context. No weight and no active adapter may change
    there."""
    for layer in layers:
        layer.keep(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.keep(False)


@torch.no_grad()
def settle(model: Any) -> None:
    """Writes the rounded weights into a marked model without adapters, and removes the marks."""
    for layer in quantised(model):
        layer.layer.weight.copy_(layer.weight())
        del layer.layer.forward
        delattr(layer.layer, MARK)
